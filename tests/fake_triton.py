"""Stand-ins for triton_python_backend_utils and what its process hands to a model."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue

import numpy as np

from sparsespec.runtime.serving.triton.python_backend import Array

FINAL = 1
MOST_WAIT_S = 60
ALL_OUTPUTS = (
    "text_output",
    "sequence_index",
    "output_ids",
    "num_accepted",
    "output_log_probs",
    "cum_log_probs",
    "finish_reason",
    "batch_index",
    "num_input_tokens",
    "num_output_tokens",
    "total_accepted_draft_tokens",
    "total_draft_tokens",
    "acceptance_rate",
)


@dataclass(frozen=True)
class FakeTensor:
    """Of a request or a response."""

    tensor_name: str
    array: Array

    def name(self) -> str:
        return self.tensor_name

    def as_numpy(self) -> Array:
        return self.array


@dataclass(frozen=True)
class FakeError:
    """A TritonError."""

    message: str
    code: str


class FakeErrorKind:
    """TritonError."""

    INVALID_ARG = "INVALID_ARG"
    UNAVAILABLE = "UNAVAILABLE"
    INTERNAL = "INTERNAL"
    CANCELLED = "CANCELLED"

    def __call__(self, message: str, code: str) -> FakeError:
        return FakeError(message, code)


@dataclass(frozen=True)
class FakeResponse:
    """An InferenceResponse."""

    output_tensors: Sequence[FakeTensor] = ()
    error: FakeError | None = None

    def array(self, name: str) -> Array:
        return next(tensor.array for tensor in self.output_tensors if tensor.tensor_name == name)

    @property
    def names(self) -> list[str]:
        return [tensor.tensor_name for tensor in self.output_tensors]


@dataclass
class FakeSender:
    """Keeps what was sent; refuses what would make Triton crash."""

    sent: SimpleQueue[tuple[FakeResponse, int]] = field(default_factory=SimpleQueue)
    cancelled: bool = False
    ended: bool = False
    times_asked: int = 0
    when_asked: Callable[[], None] = lambda: None

    def send(self, response: FakeResponse, flags: int = 0) -> None:
        if self.ended:
            raise RuntimeError("a response after the last one")
        self.ended = flags == FINAL
        self.sent.put((response, flags))

    def is_cancelled(self) -> bool:
        self.times_asked += 1
        self.when_asked()
        if self.ended:
            raise RuntimeError("asked after the last response")
        return self.cancelled

    def responses(self) -> list[FakeResponse]:
        """All, up to the last one."""
        found, flags = [], 0
        while flags != FINAL:
            response, flags = self.sent.get(timeout=MOST_WAIT_S)
            found.append(response)
        return found


@dataclass
class FakeRequest:
    """An InferenceRequest with tensors of one batch element."""

    values: Mapping[str, Sequence[object]]
    name: str = ""
    timeout_us: int = 0
    outputs: Sequence[str] = ALL_OUTPUTS
    sender: FakeSender = field(default_factory=FakeSender)

    def request_id(self) -> str:
        return self.name

    def inputs(self) -> list[FakeTensor]:
        return [FakeTensor(name, tensor_array(elements)) for name, elements in self.values.items()]

    def requested_output_names(self) -> Sequence[str]:
        return self.outputs

    def timeout(self) -> int:
        return self.timeout_us

    def get_response_sender(self) -> FakeSender:
        return self.sender


@dataclass
class FakeMetric:
    """What it was told."""

    labels: Mapping[str, str]
    buckets: Sequence[float] | None
    value: float = 0.0
    observed: list[float] = field(default_factory=list)

    def increment(self, value: float) -> None:
        self.value += value

    def set(self, value: float) -> None:
        self.value = value

    def observe(self, value: float) -> None:
        self.observed.append(value)


@dataclass
class FakeFamily:
    """Keeps its metrics."""

    name: str
    description: str
    kind: str
    metrics: list[FakeMetric] = field(default_factory=list)

    def Metric(self, labels: Mapping[str, str], buckets: Sequence[float] | None = None) -> FakeMetric:
        self.metrics.append(FakeMetric(labels, buckets))
        return self.metrics[-1]


@dataclass
class FakeFamilyKind:
    """MetricFamily."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"
    made: dict[str, FakeFamily] = field(default_factory=dict)

    def __call__(self, name: str, description: str, kind: str) -> FakeFamily:
        self.made[name] = FakeFamily(name, description, kind)
        return self.made[name]


class FakeBackend:
    """The module."""

    TRITONSERVER_RESPONSE_COMPLETE_FINAL = FINAL

    def __init__(self) -> None:
        self.TritonError = FakeErrorKind()
        self.MetricFamily = FakeFamilyKind()
        self.Tensor = FakeTensor
        self.InferenceResponse = FakeResponse


def tensor_array(elements: Sequence[object]) -> Array:
    """[1, len(elements)]: texts as bytes, numbers as Triton's 32 bits."""
    if all(isinstance(each, str | bytes) for each in elements):
        texts = [each.encode() if isinstance(each, str) else each for each in elements]
        return np.array([texts], dtype=np.object_)
    array = np.array([elements])
    return array.astype(np.float32) if array.dtype == np.float64 else array


def model_args(repository: Path, parameters: Mapping[str, str]) -> dict[str, str]:
    """What Triton hands to `initialize`."""
    document = {
        "max_batch_size": 1,
        "instance_group": [{"name": "sparsespec_0", "count": 1}],
        "model_transaction_policy": {"decoupled": True},
        "parameters": {key: {"string_value": text} for key, text in parameters.items()},
    }
    return {
        "model_config": json.dumps(document),
        "model_repository": str(repository / "sparsespec"),
        "model_name": "sparsespec",
        "model_version": "1",
    }
