"""What a service lets in; also flags of `sparsespec-serve` and parameters of the Triton model."""

from __future__ import annotations

from dataclasses import dataclass

from sparsespec.builder.config_io import check_range, check_types, option
from sparsespec.builder.errors import InputError

MAX_REQUESTS = 65_536
MAX_TIMEOUT_S = 7 * 24 * 3600.0


@dataclass(frozen=True)
class ServiceConfig:
    """Limits of the service."""

    max_requests: int = option(
        256, "answers that run or wait at once, n for a prompt; beyond them requests are refused: try again later"
    )
    request_timeout_s: float = option(600.0, "seconds that a request may take, waiting included")
    stream_interval_us: int = option(
        500,
        "microseconds, times the requests at work, in which what an answer gains is put together before more of it is "
        "streamed; bounds what streaming takes of the host; 0 streams each step's",
    )
    drain_timeout_s: float = option(30.0, "seconds that a shutdown waits for requests that have begun")

    def __post_init__(self) -> None:
        check_types(self)
        check_range("max_requests", self.max_requests, least=1, most=MAX_REQUESTS)
        check_range("stream_interval_us", self.stream_interval_us, least=0, most=1_000_000)
        for name in ("request_timeout_s", "drain_timeout_s"):
            value = getattr(self, name)
            if not 0 < value <= MAX_TIMEOUT_S:
                raise InputError(f"{name} must be in (0, {MAX_TIMEOUT_S:.0f}], found {value!r}")
