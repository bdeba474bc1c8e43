"""The experiments by name. Each brings its own plain decoding: every speed-up is a ratio within one run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from sparsespec.builder.build_config import BuildConfig
from sparsespec.builder.errors import InputError
from sparsespec.runtime.config import RuntimeConfig, SpeculationConfig
from sparsespec.runtime.llm import LLM
from sparsespec.runtime.loading import LoadedEngine
from sparsespec.runtime.sampling_params import SamplingParams
from throughput_study.agreement import ForcedAgreement
from throughput_study.cases import PLAIN, RESULT_LAG, Measured, Rig, Traffic, cycle_steps, graph_executor, release
from throughput_study.engines import QWEN3_8B, random_engine, real_engine
from throughput_study.growth import GrowthRun, grow
from throughput_study.latency import LatencyCase, LatencyRun, measure_latency
from throughput_study.peers import answer, answer_by_transformers
from throughput_study.texts import random_prompts, real_prompts
from throughput_study.windows import Load, Window

DEFAULT = SpeculationConfig()
ADAPTIVE = replace(DEFAULT, adaptive=True)
# Of 8 drafts: the paper's Qwen3-8B.
PAPER_AGREEMENT = 6.16
AGREEMENTS = (3.0, 4.0, 5.0, 6.0, 7.0, 8.0)
# Room for a window beyond the prompt, and for what the first requests gain while the last prompts join.
_MARGIN, _MARGIN_8B = 1500, 700
# Prompt tokens that join a step: many, since prompts are not what is measured here, and as many as memory allows.
_CHUNK, _CHUNK_8B = 16384, 4096
_CYCLES, _PLAIN_STEPS = 10, 40


@dataclass(frozen=True)
class Choice:
    """What the command line says."""

    engine_dir: Path | None
    batch: int | None
    context: int | None

    def engine(self, batch: int, length: int) -> LoadedEngine:
        """The real model for `batch` requests of at most `length` tokens."""
        if self.engine_dir is None:
            raise InputError("engine_dir: this experiment needs an engine directory, found none")
        return real_engine(self.engine_dir, limits(batch, length, _CHUNK))


Result = Measured | GrowthRun | LatencyRun
Results = Iterator[Result]


def limits(batch: int, length: int, chunk_size: int, max_budget: int = 2048) -> BuildConfig:
    """An engine's, for a batch that decodes together."""
    return BuildConfig(
        dtype="bfloat16",
        max_batch_size=batch,
        max_seq_len=length,
        max_num_tokens=chunk_size + 17 * batch,
        max_budget=max_budget,
    )


def greedy(max_tokens: int) -> SamplingParams:
    """Whose requests do not end by themselves."""
    return SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)


def forced(choice: Choice) -> Results:
    """B: the geometry of Qwen3-8B, agreement forced."""
    batch, context = choice.batch or 96, (choice.context or 8192) - 120
    engine = random_engine(
        QWEN3_8B, limits(batch, context + _MARGIN_8B, _CHUNK_8B, max_budget=640), torch.device("cuda")
    )
    traffic = Traffic(random_prompts(QWEN3_8B.vocab_size, batch, context), greedy(_MARGIN_8B - 10))
    yield Rig(engine, _CHUNK_8B).run("plain", PLAIN, traffic, _PLAIN_STEPS)
    release()
    mean = torch.tensor(PAPER_AGREEMENT, device="cuda")
    rig = Rig(engine, _CHUNK_8B, prepare=partial(_force, mean=mean), measure_more=partial(_other_agreements, mean=mean))
    yield rig.run("agreement 6.16", DEFAULT, traffic, cycle_steps(DEFAULT, _CYCLES))
    release()


def _force(llm: LLM, mean: torch.Tensor) -> None:
    executor = graph_executor(llm)
    executor.replace_step_ops(ForcedAgreement(executor.step_ops, mean))


def _other_agreements(load: Load, mean: torch.Tensor) -> tuple[Window, ...]:
    """A window for each of AGREEMENTS."""
    windows = []
    for agreement in AGREEMENTS:
        mean.fill_(agreement)
        windows.append(load.measure(cycle_steps(DEFAULT, 3)))
    mean.fill_(PAPER_AGREEMENT)
    return tuple(windows)


def shapes(choice: Choice) -> Results:
    """A at the shapes that vLLM was measured at."""
    for batch, context in ((512, 4160), (256, 7160)):
        prompt = context - 90
        length = min(prompt + _MARGIN, 8192 - 17)
        engine = choice.engine(batch, length)
        traffic = Traffic(real_prompts(engine.codec, batch, prompt), greedy(length - prompt))
        for label, speculation in (("plain", PLAIN), ("speculative", DEFAULT), ("adaptive", ADAPTIVE)):
            steps = _PLAIN_STEPS if label == "plain" else cycle_steps(speculation, _CYCLES)
            yield Rig(engine, _CHUNK).run(f"{batch} x {context} {label}", speculation, traffic, steps)
            release()


def growth(choice: Choice) -> Results:
    """A from 2k to 8k, greedy."""
    yield from _grow(choice, temperature=0.0)


def growth_sampled(choice: Choice) -> Results:
    """The same, sampled."""
    yield from _grow(choice, temperature=0.6)


def _grow(choice: Choice, temperature: float) -> Results:
    batch, length, prompt = choice.batch or 512, 8192 - 17, 2048
    engine = choice.engine(batch, length)
    params = replace(greedy(length - prompt), temperature=temperature, seed=1)
    traffic = Traffic(real_prompts(engine.codec, batch, prompt), params)
    for label, speculation in (("plain", PLAIN), ("speculative", DEFAULT), ("adaptive", ADAPTIVE)):
        yield grow(engine, label, speculation, traffic, _CHUNK)
        release()


def drafters(choice: Choice) -> Results:
    """A: every drafter on the same requests."""
    ways = {
        "none": PLAIN,
        "ngram": replace(DEFAULT, drafter="ngram"),
        "window": replace(DEFAULT, drafter="window"),
        "the paper's pillars": replace(DEFAULT, recent_share=0.0, moving_share=0.0, max_lookups=0),
        "pillar": DEFAULT,
        "pillar, adaptive": ADAPTIVE,
    }
    yield from _side_by_side(choice, ways)


def sweep_k(choice: Choice) -> Results:
    """A: drafts per cycle."""
    yield from _side_by_side(choice, {"none": PLAIN} | {f"k {k}": replace(DEFAULT, k=k) for k in (4, 6, 8, 10, 12, 16)})


def sweep_ratio(choice: Choice) -> Results:
    """A: share of the cache that drafts read."""
    ratios = (0.025, 0.05, 0.075, 0.1, 0.15, 0.2)
    ways = {f"ratio {ratio}": replace(DEFAULT, ratio=ratio, min_budget=64) for ratio in ratios}
    yield from _side_by_side(choice, {"none": PLAIN} | ways)


def sweep_batch(choice: Choice) -> Results:
    """A: requests that decode together."""
    for batch in (1, 8, 32, 128, 512):
        named = {f"{batch} none": PLAIN, f"{batch} pillar": DEFAULT, f"{batch} adaptive": ADAPTIVE}
        yield from _side_by_side(replace(choice, batch=batch), named)


def sweep_context(choice: Choice) -> Results:
    """B: contexts at a constant number of tokens in all; agreement forced."""
    total = 96 * 8192
    for context in (8192, 16384, 32768):
        yield from forced(replace(choice, batch=total // context, context=context))


def latency(choice: Choice) -> Results:
    """B: while 32 requests decode at 4k, prompts of 32k join them."""
    batch, context, joining, chunk_size = choice.batch or 32, choice.context or 4096, 32768, 1024
    engine = random_engine(QWEN3_8B, limits(batch + 1, joining + 1000, chunk_size), torch.device("cuda"))
    kv_tokens = batch * (context + 3100) + 2 * (joining + 1000)
    case = LatencyCase(
        traffic=Traffic(random_prompts(QWEN3_8B.vocab_size, batch, context), greedy(3000)),
        joining=Traffic(random_prompts(QWEN3_8B.vocab_size, 2, joining, seed=2), greedy(500)),
        runtime=RuntimeConfig(chunk_size=chunk_size, result_lag=RESULT_LAG, max_tokens_in_paged_kv_cache=kv_tokens),
    )
    for label, speculation in (("plain", PLAIN), ("speculative", DEFAULT)):
        yield measure_latency(engine, label, speculation, case)
        release()


def peer(choice: Choice) -> Results:
    """A: whole answers, prompts included, beside transformers' continuous batching."""
    batch, prompt, answer_len = choice.batch or 64, choice.context or 2048, 128
    engine = choice.engine(batch, prompt + answer_len)
    traffic = Traffic(real_prompts(engine.codec, batch, prompt), greedy(answer_len))
    for label, speculation in (("plain", PLAIN), ("speculative", DEFAULT)):
        yield Measured(label, speculation, answer(engine, speculation, traffic, _CHUNK))
        release()
    yield Measured("transformers' continuous batching", PLAIN, answer_by_transformers(engine, traffic))


def _side_by_side(choice: Choice, ways: Mapping[str, SpeculationConfig]) -> Results:
    batch, prompt = choice.batch or 256, (choice.context or 4096) - 90
    engine = choice.engine(batch, prompt + _MARGIN)
    traffic = Traffic(real_prompts(engine.codec, batch, prompt), greedy(_MARGIN - 10))
    for label, speculation in ways.items():
        steps = _PLAIN_STEPS if speculation.num_draft_steps == 0 else cycle_steps(speculation, _CYCLES)
        yield Rig(engine, _CHUNK).run(label, speculation, traffic, steps)
        release()


EXPERIMENTS: Mapping[str, Callable[[Choice], Results]] = {
    "forced": forced,
    "shapes": shapes,
    "growth": growth,
    "growth_sampled": growth_sampled,
    "drafters": drafters,
    "sweep_k": sweep_k,
    "sweep_ratio": sweep_ratio,
    "sweep_batch": sweep_batch,
    "sweep_context": sweep_context,
    "latency": latency,
    "peer": peer,
}
