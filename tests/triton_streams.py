"""Requests to the Triton model over gRPC, each on a stream of its own."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from queue import SimpleQueue

import numpy as np
from tritonclient.grpc import InferenceServerClient, InferInput, InferResult
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

from serving_study.triton_process import MODEL, REPOSITORY

Value = str | float | bool | Sequence[str] | Sequence[int] | Sequence[bytes] | InferInput
MOST_WAIT_S = 120
_DECLARED = re.findall(r'name: "(\w+)", data_type: TYPE_(\w+)', (REPOSITORY / MODEL / "config.pbtxt").read_text())
DATA_TYPES = {name: "BYTES" if kind == "STRING" else kind for name, kind in _DECLARED}


@dataclass(frozen=True)
class Answer:
    """All that a stream brought."""

    responses: tuple[InferResult, ...]
    error: str | None

    @property
    def text(self) -> str:
        """Of its first answer."""
        return "".join(self.strings("text_output"))

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Of its first answer."""
        return tuple(int(token) for row in self.arrays("output_ids") for token in row.reshape(-1))

    def strings(self, name: str) -> list[str]:
        """The first element of an output, of every response that has it."""
        return [array[0].decode() for array in self.arrays(name)]

    def arrays(self, name: str) -> list[np.ndarray]:
        """An output of every response that has it."""
        found = [response.as_numpy(name) for response in self.responses]
        return [array for array in found if array is not None]


class GrpcStream:
    """One request's stream."""

    def __init__(self, address: str) -> None:
        self._client = InferenceServerClient(address)
        self._results: SimpleQueue[InferResult | InferenceServerException] = SimpleQueue()
        self._client.start_stream(lambda result, error: self._results.put(result if error is None else error))

    def ask(self, values: Mapping[str, Value], request_id: str = "", timeout_us: int | None = None) -> GrpcStream:
        """Send the request."""
        inputs = [value if isinstance(value, InferInput) else _input(name, value) for name, value in values.items()]
        self._client.async_stream_infer(MODEL, inputs, request_id=request_id, timeout=timeout_us)
        return self

    def next(self) -> InferResult | InferenceServerException:
        """Wait for a response."""
        return self._results.get(timeout=MOST_WAIT_S)

    def rest(self) -> Answer:
        """Wait for all further responses, and close the stream."""
        responses: list[InferResult] = []
        error = None
        while error is None and not (responses and _is_final(responses[-1])):
            result = self.next()
            if isinstance(result, InferenceServerException):
                error = str(result)
            else:
                responses.append(result)
        self.close()
        return Answer(tuple(responses), error)

    def close(self, cancel: bool = False) -> None:
        """Leave; cancel: without waiting for what was asked for."""
        self._client.stop_stream(cancel_requests=cancel)
        self._client.close()


@contextmanager
def running(address: str, requests: Sequence[Mapping[str, Value]]) -> Iterator[list[GrpcStream]]:
    """Streams that have had their first responses; cancelled at the end."""
    streams = [GrpcStream(address).ask(values) for values in requests]
    try:
        for stream in streams:
            first = stream.next()
            if isinstance(first, InferenceServerException):
                raise first
        yield streams
    finally:
        for stream in streams:
            stream.close(cancel=True)


def _is_final(response: InferResult) -> bool:
    return bool(response.get_response().parameters["triton_final_response"].bool_param)


def make_input(name: str, elements: Sequence[object], kind: str) -> InferInput:
    """[1, len(elements)]: the batch dimension comes first."""
    if kind == "BYTES":
        elements = [each.encode() if isinstance(each, str) else each for each in elements]
    array = np.array([elements], dtype=triton_to_np_dtype(kind))
    tensor = InferInput(name, list(array.shape), kind)
    tensor.set_data_from_numpy(array)
    return tensor


def _input(name: str, value: Value) -> InferInput:
    elements = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    return make_input(name, elements, DATA_TYPES[name])
