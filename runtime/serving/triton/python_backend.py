"""What is used of Triton's Python backend: the module triton_python_backend_utils, found in its process alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class InputTensor(Protocol):
    """A tensor of a request."""

    def name(self) -> str:
        """As config.pbtxt has it."""
        ...

    def as_numpy(self) -> Array:
        """TYPE_STRING: an array of objects, which are bytes."""
        ...


class ResponseSender(Protocol):
    """Sends a request's responses, from any thread, also after `execute` has returned."""

    def send(self, response: object = None, flags: int = 0) -> None:
        """After TRITONSERVER_RESPONSE_COMPLETE_FINAL nothing more may be sent."""
        ...

    def is_cancelled(self) -> bool:
        """Whether the client has left; asks the server's process, which takes some 50 microseconds."""
        ...


class InferenceRequest(Protocol):
    """One request. Its tensors lie in memory shared with the server until it is deleted."""

    def request_id(self) -> str:
        """The client's; empty where it gave none."""
        ...

    def inputs(self) -> Sequence[InputTensor]:
        """Those that the client sent."""
        ...

    def requested_output_names(self) -> Sequence[str]:
        """What the client wants; all outputs where it said nothing."""
        ...

    def timeout(self) -> int:
        """Microseconds; 0 where the client gave none."""
        ...

    def get_response_sender(self) -> ResponseSender:
        """For a decoupled model."""
        ...


class ErrorKind(Protocol):
    """TritonError: makes errors, and has their codes."""

    INVALID_ARG: int
    UNAVAILABLE: int
    INTERNAL: int
    CANCELLED: int

    def __call__(self, message: str, code: int) -> object:
        """An error for a response."""
        ...


class Metric(Protocol):
    """A metric of some labels."""

    def increment(self, value: float) -> None:
        """Of a counter or a gauge."""
        ...

    def set(self, value: float) -> None:
        """Of a gauge."""
        ...

    def observe(self, value: float) -> None:
        """Of a histogram."""
        ...


class MetricFamily(Protocol):
    """Must outlive its metrics."""

    def Metric(self, labels: Mapping[str, str], buckets: Sequence[float] | None = None) -> Metric:
        """buckets: of a histogram, and only of one."""
        ...


class MetricFamilyKind(Protocol):
    """MetricFamily: makes families, and has their kinds."""

    COUNTER: object
    GAUGE: object
    HISTOGRAM: object

    def __call__(self, name: str, description: str, kind: object) -> MetricFamily:
        """A family on the server's /metrics."""
        ...


class MakeTensor(Protocol):
    """Tensor: makes outputs."""

    def __call__(self, name: str, data: Array) -> object:
        """Texts are an array of objects, which are bytes."""
        ...


class MakeResponse(Protocol):
    """InferenceResponse: makes responses."""

    def __call__(self, output_tensors: Sequence[object] = (), error: object = None) -> object:
        """Either tensors or an error."""
        ...


class PythonBackend(Protocol):
    """The module triton_python_backend_utils."""

    TRITONSERVER_RESPONSE_COMPLETE_FINAL: int
    Tensor: MakeTensor
    InferenceResponse: MakeResponse
    TritonError: ErrorKind
    MetricFamily: MetricFamilyKind


def text_array(texts: Sequence[str]) -> Array:
    """Texts as Triton has them: UTF-8, [len(texts)]."""
    array = np.empty(len(texts), dtype=np.object_)
    array[:] = [text.encode("utf-8") for text in texts]
    return array
