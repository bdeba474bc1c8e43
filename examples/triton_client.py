"""Stream an answer from Triton: python examples/triton_client.py "question" [ADDRESS]. Needs tritonclient[grpc]."""

from __future__ import annotations

import json
import sys
from queue import SimpleQueue

import numpy as np
from tritonclient.grpc import InferenceServerClient, InferInput, InferResult
from tritonclient.utils import InferenceServerException


def tensor(name: str, data_type: str, value: object) -> InferInput:
    """One value; the batch dimension comes first."""
    made = InferInput(name, [1, 1], data_type)
    dtype = {"BYTES": np.object_, "INT32": np.int32, "BOOL": np.bool_}[data_type]
    made.set_data_from_numpy(np.array([[value]], dtype=dtype))
    return made


def main(question: str, address: str) -> None:
    """Print the answer as it comes, and how many of its drafts stood."""
    chat = json.dumps([{"role": "user", "content": question}])
    inputs = [tensor("messages", "BYTES", chat), tensor("max_tokens", "INT32", 64), tensor("stream", "BOOL", True)]
    results: SimpleQueue[InferResult | InferenceServerException] = SimpleQueue()
    with InferenceServerClient(address) as client:
        client.start_stream(lambda result, error: results.put(result or error))
        client.async_stream_infer("sparsespec", inputs)
        while True:
            result = results.get()
            if isinstance(result, InferenceServerException):
                raise result
            print(result.as_numpy("text_output")[0].decode(), end="", flush=True)
            if result.get_response().parameters["triton_final_response"].bool_param:
                break
    accepted, drafts = (int(result.as_numpy(f"total_{kind}_tokens")[0]) for kind in ("accepted_draft", "draft"))
    print(f"\n{accepted} of {drafts} drafts accepted")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "localhost:8001")
