"""A client of the Triton model: gRPC streams, one for each question."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import numpy as np
from tritonclient.grpc import InferInput
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

from serving_study.clients import Question, ServingFailure
from serving_study.triton_process import MODEL


class TritonStreams:
    """A StreamingClient."""

    def __init__(self, address: str) -> None:
        self._grpc = InferenceServerClient(address)

    async def stream(self, question: Question) -> AsyncGenerator[str, None]:
        """See StreamingClient."""

        async def asked() -> AsyncIterator[dict[str, Any]]:
            yield {"model_name": MODEL, "inputs": _inputs(question)}

        try:
            async for response, error in self._grpc.stream_infer(asked()):
                if error is not None:
                    raise ServingFailure(str(error))
                text = response.as_numpy("text_output")
                if text is not None and text.size:
                    yield text[0].decode()
        except InferenceServerException as error:
            raise ServingFailure(str(error)) from error

    async def close(self) -> None:
        """See StreamingClient."""
        await self._grpc.close()


def _inputs(question: Question) -> list[InferInput]:
    return [
        _input("text_input", "BYTES", np.array([[question.prompt.encode()]], dtype=np.object_)),
        _input("max_tokens", "INT32", np.array([[question.max_tokens]], dtype=np.int32)),
        _input("ignore_eos", "BOOL", np.array([[question.ignore_eos]], dtype=np.bool_)),
        _input("stream", "BOOL", np.array([[True]], dtype=np.bool_)),
    ]


def _input(name: str, kind: str, value: np.ndarray[Any, Any]) -> InferInput:
    made = InferInput(name, list(value.shape), kind)
    made.set_data_from_numpy(value)
    return made
