"""How the HTTP server is reached and what it takes from a connection; flags of `sparsespec-serve`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sparsespec.builder.config_io import check_range, check_types, option, required
from sparsespec.builder.errors import InputError
from sparsespec.runtime.serving.logs import LogLevel
from sparsespec.runtime.serving.service_config import MAX_TIMEOUT_S

_MOST_BYTES = 2**40
_MOST_CONNECTIONS = 1_000_000


@dataclass(frozen=True)
class ServerConfig:
    """The HTTP server."""

    engine_dir: Path = required("engine directory written by build_engine.py")
    host: str = option("127.0.0.1", "address to listen at; 0.0.0.0 is all of the machine's")
    port: int = option(8000, "port to listen at; 0 takes a free one, which the log names")
    served_model_name: str | None = option(None, "the model's name for clients; engine_dir's own when not given")
    api_key: str | None = option(
        None, "what clients of /v1 have to send as `Authorization: Bearer KEY`; SPARSESPEC_API_KEY when not given"
    )
    max_body_bytes: int = option(4 << 20, "most bytes of a request's body")
    max_pending_body_bytes: int = option(256 << 20, "most bytes of bodies that are being received, all together")
    max_head_bytes: int = option(64 << 10, "most bytes of a request's line and headers")
    max_connections: int = option(1024, "most connections; further ones are closed at once")
    receive_timeout_s: float = option(20.0, "seconds that a request's head may take to arrive, and its body again")
    send_timeout_s: float = option(60.0, "seconds that a client may take nothing of what is sent to it")
    log_level: LogLevel = option("info", "what is logged at least")

    def __post_init__(self) -> None:
        check_types(self)
        check_range("port", self.port, least=0, most=65535)
        check_range("max_body_bytes", self.max_body_bytes, least=1, most=_MOST_BYTES)
        check_range("max_pending_body_bytes", self.max_pending_body_bytes, least=self.max_body_bytes, most=_MOST_BYTES)
        check_range("max_head_bytes", self.max_head_bytes, least=1024, most=_MOST_BYTES)
        check_range("max_connections", self.max_connections, least=1, most=_MOST_CONNECTIONS)
        for name in ("receive_timeout_s", "send_timeout_s"):
            if not 0 < getattr(self, name) <= MAX_TIMEOUT_S:
                raise InputError(f"{name} must be in (0, {MAX_TIMEOUT_S:.0f}], found {getattr(self, name)!r}")
        for name in ("host", "served_model_name", "api_key"):
            if getattr(self, name) == "":
                raise InputError(f"{name} must have at least 1 character, found 0")
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.isprintable()):
            raise InputError("api_key must be printable ASCII, found other characters")

    @property
    def model_name(self) -> str:
        """What clients call the model."""
        return self.served_model_name or self.engine_dir.resolve().name
