"""What may enter: a prompt and its parameters, checked against the engine and completed."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace

from sparsespec.builder.config_io import MAX_INT, shown
from sparsespec.builder.engine_dir import EngineConfig
from sparsespec.builder.errors import RequestError
from sparsespec.runtime.prompt_input import Prompt, PromptInput, read_prompt
from sparsespec.runtime.request import NO_DRAFTS, DraftShape, RequestSpec
from sparsespec.runtime.sampling_params import MAX_STOP_TOKEN_IDS, SamplingParams
from sparsespec.runtime.text import ChatMessage, TextCodec

MAX_PRIORITY = MAX_INT


@dataclass(frozen=True)
class AdmissionRules:
    """Limits that every request is held against."""

    engine: EngineConfig
    codec: TextCodec
    drafts: DraftShape  # of every request that does not decline speculation
    kv_cache_tokens: int

    def specs(
        self, first_id: int, prompt: tuple[int, ...], params: SamplingParams, priority: int = 0
    ) -> tuple[RequestSpec, ...]:
        """One spec per answer asked for. Raises RequestError with the value and the limit."""
        _check_priority(priority)
        if not isinstance(params, SamplingParams):
            raise RequestError(f"sampling_params must be SamplingParams, found {shown(params)}")
        self._check_prompt(prompt)
        stops = self._stop_token_ids(params)
        seed = secrets.randbits(62) if params.seed is None else params.seed
        spec = RequestSpec(
            request_id=first_id,
            prompt_token_ids=prompt,
            params=params,
            seed=seed,
            stop_token_ids=stops,
            max_tokens=min(params.max_tokens, self.engine.build.max_seq_len - len(prompt)),
            drafts=self.drafts if params.speculate else NO_DRAFTS,
            priority=priority,
        )
        if spec.max_kv_len > self.kv_cache_tokens:
            raise RequestError(
                f"prompt of {len(prompt)} and up to {spec.max_tokens} new tokens need {spec.max_kv_len} tokens of "
                f"KV cache, which holds {self.kv_cache_tokens}"
            )
        return tuple(replace(spec, request_id=first_id + i, seed=(seed + i) % 2**63) for i in range(params.n))

    def read_prompt(self, given: PromptInput) -> Prompt:
        """A text, a chat or token ids as tokens. Raises RequestError for anything else, and for far too long a text."""
        if isinstance(given, str):
            self.check_text(given)
        if isinstance(given, list | tuple):
            self.check_text("".join(each.content for each in given if isinstance(each, ChatMessage)))
        if isinstance(given, range):  # which may be endless without taking any memory
            given = given[: self.engine.build.max_seq_len]
        return read_prompt(self.codec, given)

    def check_text(self, text: str) -> None:
        """Raise RequestError for a text over max_seq_len however it is tokenized: that itself takes time and memory."""
        limit = self.engine.build.max_seq_len
        if len(text) > limit * self.codec.longest_token:
            raise RequestError(f"the prompt has {len(text)} characters, more than max_seq_len {limit} tokens can hold")

    def _check_prompt(self, prompt: tuple[int, ...]) -> None:
        if not prompt:
            raise RequestError("the prompt is empty: expected at least 1 token, found 0")
        limit = self.engine.build.max_seq_len
        if len(prompt) >= limit:
            raise RequestError(
                f"the prompt has {len(prompt)} tokens; with at least one new token that is over max_seq_len {limit}"
            )
        self._check_tokens("prompt", prompt)

    def _check_tokens(self, name: str, token_ids: tuple[int, ...]) -> None:
        vocab_size = self.engine.model.vocab_size
        for token in (min(token_ids, default=0), max(token_ids, default=0)):
            if not 0 <= token < vocab_size:
                raise RequestError(f"{name}: token {shown(token)} is outside the vocabulary of {vocab_size}")

    def _stop_token_ids(self, params: SamplingParams) -> tuple[int, ...]:
        self._check_tokens("stop_token_ids", params.stop_token_ids)
        ends = () if params.ignore_eos else self.engine.model.eos_token_ids
        stops = tuple(dict.fromkeys(ends + params.stop_token_ids))
        if len(stops) > MAX_STOP_TOKEN_IDS:
            raise RequestError(f"at most {MAX_STOP_TOKEN_IDS} stop tokens are supported, found {len(stops)}")
        return stops


def _check_priority(priority: int) -> None:
    if type(priority) is not int or not -MAX_PRIORITY <= priority <= MAX_PRIORITY:
        raise RequestError(f"priority must be an integer in -2^31 + 1..2^31 - 1, found {shown(priority)}")
