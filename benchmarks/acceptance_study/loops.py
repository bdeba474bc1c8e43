"""Loops: whole answers by the LLM itself, in flight together, as a user would get them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sparsespec.runtime.cli.repetition import repetitive_verifications
from sparsespec.runtime.config import RuntimeConfig, SpeculationConfig
from sparsespec.runtime.llm import LLM
from sparsespec.runtime.loading import LoadedEngine
from sparsespec.runtime.outputs import CompletionOutput
from sparsespec.runtime.sampling_params import SamplingParams

_CHUNK = 4096


@dataclass(frozen=True)
class LoopResult:
    """One answer's verifications; `fresh` are those outside repetitive stretches."""

    token_ids: tuple[int, ...]
    num_cycles: int
    num_accepted: int
    fresh_cycles: int
    fresh_accepted: int


def run_loops(
    engine: LoadedEngine,
    prompts: Sequence[Sequence[int]],
    speculation: SpeculationConfig,
    temperature: float,
    num_tokens: int,
) -> list[LoopResult]:
    """num_tokens new tokens for each prompt; prompt i is sampled with seed i."""
    longest = max(map(len, prompts)) + num_tokens
    rows = max(_CHUNK, len(prompts) * (speculation.k + 1))
    build = replace(
        engine.config.build,
        max_batch_size=len(prompts),
        max_seq_len=longest,
        max_num_tokens=rows,
        max_budget=max(longest, speculation.min_budget),
    )
    loaded = replace(engine, config=replace(engine.config, build=build))
    llm = LLM(loaded, speculation, RuntimeConfig(chunk_size=_CHUNK))
    ids = [
        llm.add_request(
            list(prompt), SamplingParams(max_tokens=num_tokens, temperature=temperature, seed=seed, ignore_eos=True)
        )
        for seed, prompt in enumerate(prompts)
    ]
    for _ in llm.run(ids):
        pass
    return [_result(llm.take_output(request_id).outputs[0]) for request_id in ids]


def _result(answer: CompletionOutput) -> LoopResult:
    repetitive = repetitive_verifications(answer)
    fresh = [block for block, repeats in zip(answer.verifications, repetitive, strict=True) if not repeats]
    return LoopResult(
        token_ids=answer.token_ids,
        num_cycles=len(answer.verifications),
        num_accepted=sum(block.num_accepted for block in answer.verifications),
        fresh_cycles=len(fresh),
        fresh_accepted=sum(block.num_accepted for block in fresh),
    )
