"""A request's tensors as the service takes them. Names are those of TensorRT-LLM's backend where it has them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import inf

from sparsespec.builder.config_io import from_mapping, shown
from sparsespec.builder.errors import InputError, RequestError
from sparsespec.runtime.sampling_params import SamplingParams
from sparsespec.runtime.serving.service import ServiceRequest
from sparsespec.runtime.serving.triton.tensors import Inputs
from sparsespec.runtime.serving.triton.unsupported import check_unsupported
from sparsespec.runtime.text import ChatMessage

_PROMPTS = ("text_input", "messages", "input_ids")
_CUTS = ("top_k", "top_p", "min_p")
_DEFAULTS = SamplingParams()


@dataclass(frozen=True)
class Envelope:
    """What is known of a request beside its tensors."""

    request_id: str
    timeout_s: float | None  # Triton's own; the tensor of that name is for HTTP, which does not hand it on
    exclude_input_in_output: bool  # where the request does not say


@dataclass(frozen=True)
class TextRequest:
    """What a client asked for."""

    service: ServiceRequest
    stream: bool  # responses as the answers grow, or one at the end
    text_before: str  # of every answer: the prompt, where it is wanted there
    pad_id: int  # after the shorter ones of several answers


def read_request(inputs: Inputs, envelope: Envelope) -> TextRequest:
    """Raises RequestError for anything that is wrong or cannot be done, with the value."""
    check_unsupported(inputs)
    stream = inputs.flag("stream")
    service = ServiceRequest(
        request_id=envelope.request_id,
        prompt=_prompt(inputs),
        params=_sampling_params(inputs),
        priority=inputs.integer("priority", 0),
        timeout_s=_timeout_s(inputs, envelope),
    )
    excluded = stream or inputs.flag("exclude_input_in_output", envelope.exclude_input_in_output)
    return TextRequest(service, stream, "" if excluded else _text_of(service), inputs.integer("pad_id", 0))


def _prompt(inputs: Inputs) -> str | tuple[int, ...] | tuple[ChatMessage, ...]:
    given = [name for name in _PROMPTS if name in inputs.names()]
    if len(given) != 1:
        raise RequestError(f"expected one of {', '.join(_PROMPTS)}, found {' and '.join(given) or 'none'}")
    if given == ["input_ids"]:
        return inputs.integers("input_ids")
    text = inputs.text(given[0])
    if not text:
        raise RequestError(f"{given[0]} must not be empty")
    return text if given == ["text_input"] else _messages(text)


def _messages(text: str) -> tuple[ChatMessage, ...]:
    """JSON: a list of {"role": ..., "content": ...}."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"messages must be JSON: {error}") from None
    if not isinstance(found, list) or not found or not all(isinstance(each, dict) for each in found):
        raise RequestError(f"messages must be a list of objects, found {shown(found)}")
    try:
        return tuple(from_mapping(ChatMessage, each, f"messages[{number}]") for number, each in enumerate(found))
    except InputError as error:
        raise RequestError(str(error)) from None


def _sampling_params(inputs: Inputs) -> SamplingParams:
    end_ids = inputs.integers("end_id")
    return SamplingParams(
        max_tokens=inputs.integer("max_tokens", _DEFAULTS.max_tokens),
        min_tokens=inputs.integer("min_tokens", _DEFAULTS.min_tokens),
        temperature=inputs.number("temperature", _default_temperature(inputs)),
        top_k=inputs.integer("top_k", _DEFAULTS.top_k),
        top_p=inputs.number("top_p", _DEFAULTS.top_p) or 1.0,  # 0: no cut, as in TensorRT-LLM
        min_p=inputs.number("min_p", _DEFAULTS.min_p),
        repetition_penalty=inputs.number("repetition_penalty", _DEFAULTS.repetition_penalty),
        presence_penalty=inputs.number("presence_penalty", _DEFAULTS.presence_penalty),
        frequency_penalty=inputs.number("frequency_penalty", _DEFAULTS.frequency_penalty),
        seed=_seed(inputs),
        stop=inputs.texts("stop_words"),
        # end_id stands in for the engine's own ends; -1 is none at all.
        stop_token_ids=tuple(end_id for end_id in end_ids if end_id != -1) + inputs.integers("stop_token_ids"),
        ignore_eos=inputs.flag("ignore_eos") or bool(end_ids),
        n=inputs.integer("num_return_sequences", _DEFAULTS.n),
        logprobs=0 if inputs.flag("return_log_probs") else None,
        speculate=inputs.flag("speculate", _DEFAULTS.speculate),
    )


def _default_temperature(inputs: Inputs) -> float:
    """As in TensorRT-LLM, requests that say nothing of sampling are greedy."""
    return _DEFAULTS.temperature if any(name in inputs.names() for name in _CUTS) else 0.0


def _seed(inputs: Inputs) -> int | None:
    """random_seed is its older name, which clients still send."""
    seeds = [*inputs.integers("seed"), *inputs.integers("random_seed")]
    if len(seeds) > 1:
        raise RequestError(f"expected one of seed and random_seed, found {seeds}")
    return seeds[0] if seeds else None


def _timeout_s(inputs: Inputs, envelope: Envelope) -> float | None:
    timeout_s = inputs.number("timeout_s", inf)
    if not timeout_s > 0:
        raise RequestError(f"timeout_s must be above 0, found {timeout_s}")
    shortest = min(timeout_s, inf if envelope.timeout_s is None else envelope.timeout_s)
    return None if shortest == inf else shortest


def _text_of(service: ServiceRequest) -> str:
    if not isinstance(service.prompt, str):
        raise RequestError("exclude_input_in_output must be true where the prompt is no text_input, found False")
    return service.prompt
