"""What goes back: an answer's growth, whole answers, or an error."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sparsespec.runtime.outputs import CompletionOutput, OutputDelta, RequestOutput
from sparsespec.runtime.results import TokenLogprobs
from sparsespec.runtime.serving.triton.guarded_sender import GuardedSender
from sparsespec.runtime.serving.triton.python_backend import Array, PythonBackend, text_array
from sparsespec.runtime.serving.triton.request_reader import TextRequest

NamedArray = tuple[str, Array]


class Responses:
    """Sends one request's responses. Of the outputs, only what the client asked for."""

    def __init__(self, backend: PythonBackend, sender: GuardedSender, names: Sequence[str]) -> None:
        self._backend = backend
        self._sender = sender
        self._names = tuple(names)

    def grow(self, delta: OutputDelta) -> None:
        """An answer gained something."""
        self._sender.send(self._response(delta_arrays(delta)))

    def finish(self, request: TextRequest, output: RequestOutput) -> None:
        """The answers have ended: their totals, and they themselves unless they were streamed."""
        answers = answer_arrays(request, output) if not request.stream else [_texts("text_output", output, "")]
        self._send_last(self._response([*answers, *total_arrays(output)]))

    def fail(self, message: str, code: int) -> None:
        """The request ends with an error; code: one of TritonError's."""
        error = self._backend.TritonError(message, code)
        self._send_last(self._backend.InferenceResponse(error=error))

    def _send_last(self, response: object) -> None:
        self._sender.send_last(response, self._backend.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def _response(self, arrays: Sequence[NamedArray]) -> object:
        tensors = [self._backend.Tensor(name, array) for name, array in arrays if name in self._names]
        return self._backend.InferenceResponse(tensors)


def delta_arrays(delta: OutputDelta) -> list[NamedArray]:
    """[1] each, but [1, tokens of the delta] for output_ids and output_log_probs."""
    arrays = [
        ("text_output", text_array([delta.text])),
        ("sequence_index", _int32([delta.index])),
        ("output_ids", _int32([list(delta.token_ids)])),
        ("num_accepted", _int32([sum(delta.accepted)])),
    ]
    if delta.logprobs:
        arrays.append(("output_log_probs", np.array([_logprobs(delta.logprobs)], dtype=np.float32)))
    if delta.finish_reason is not None:
        arrays.append(("finish_reason", text_array([delta.finish_reason])))
    return arrays


def answer_arrays(request: TextRequest, output: RequestOutput) -> list[NamedArray]:
    """[n] for n answers, but [n, tokens of the longest] for output_ids and output_log_probs."""
    answers = output.outputs
    arrays = [
        ("text_output", text_array([request.text_before + answer.text for answer in answers])),
        ("sequence_index", _int32([answer.index for answer in answers])),
        ("output_ids", _int32(_padded([answer.token_ids for answer in answers], request.pad_id))),
    ]
    if request.service.params.logprobs is not None:
        rows = _padded([_logprobs(answer.logprobs) for answer in answers], 0.0)
        arrays.append(("output_log_probs", np.array(rows, dtype=np.float32)))
    return arrays


def total_arrays(output: RequestOutput) -> list[NamedArray]:
    """[n] for n answers, [1] for num_input_tokens and batch_index."""
    answers = output.outputs
    accepted, drafts = _draft_counts(answers)
    arrays = [
        ("finish_reason", text_array([answer.finish_reason or "" for answer in answers])),
        ("batch_index", _int32([0])),
        ("num_input_tokens", _int32([len(output.prompt_token_ids)])),
        ("num_output_tokens", _int32([len(answer.token_ids) for answer in answers])),
        ("total_accepted_draft_tokens", accepted),
        ("total_draft_tokens", drafts),
        ("acceptance_rate", (accepted / np.maximum(drafts, 1)).astype(np.float32)),
    ]
    if any(answer.logprobs for answer in answers):
        sums = [sum(_logprobs(answer.logprobs)) for answer in answers]
        arrays.append(("cum_log_probs", np.array(sums, dtype=np.float32)))
    return arrays


def _draft_counts(answers: Sequence[CompletionOutput]) -> tuple[Array, Array]:
    """Of each answer, [n]: accepted drafts, and drafts that were verified."""
    accepted = [sum(check.num_accepted for check in answer.verifications) for answer in answers]
    drafts = [sum(check.num_drafts for check in answer.verifications) for answer in answers]
    return _int32(accepted), _int32(drafts)


def _texts(name: str, output: RequestOutput, text: str) -> NamedArray:
    return name, text_array([text for _ in output.outputs])


def _logprobs(found: Sequence[TokenLogprobs]) -> list[float]:
    return [each.logprob for each in found]


def _int32(values: Sequence[int] | Sequence[Sequence[float]]) -> Array:
    return np.array(values, dtype=np.int32)


def _padded(rows: Sequence[Sequence[float]], padding: float) -> list[list[float]]:
    longest = max(map(len, rows))
    return [[*row, *[padding] * (longest - len(row))] for row in rows]
