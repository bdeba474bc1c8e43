"""B: the geometry of Qwen3-8B with random weights. Its drafts do not agree with it, so agreement is forced."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch

from sparsespec.builder.model_config import ModelConfig
from sparsespec.runtime.config import RuntimeConfig
from sparsespec.runtime.llm import LLM
from sparsespec.runtime.loading import LoadedEngine
from throughput_study.agreement import ForcedAgreement
from throughput_study.cases import PLAIN, RESULT_LAG, Rig, Traffic, cycle_steps, release
from throughput_study.engines import QWEN3_8B, random_engine
from throughput_study.latency import LatencyCase, measure_latency
from throughput_study.prediction import graph_executor
from throughput_study.settings import (
    CYCLES,
    DEFAULT,
    PAPER_AGREEMENT,
    PLAIN_STEPS,
    Choice,
    Results,
    greedy,
    limits,
)
from throughput_study.texts import random_prompts
from throughput_study.windows import Load, Window

AGREEMENTS = (3.0, 4.0, 5.0, 6.0, 7.0, 8.0)
# Room for windows beyond the prompt, and for what the first requests gain while the last prompts join.
_MARGIN = 700
# Prompt tokens that join a step: as many as memory allows.
_CHUNK = 4096
# Tokens of all requests together, of sweep_context.
_TOTAL = 48 * 8192
_CONTEXTS = (8192, 16384, 32768, 65536)


@dataclass(frozen=True)
class _Case:
    batch: int
    context: int

    @property
    def model(self) -> ModelConfig:
        """With positions for the longest contexts."""
        return replace(QWEN3_8B, max_position_embeddings=max(QWEN3_8B.max_position_embeddings, 2 * self.context))

    @property
    def prompt(self) -> int:
        """So that windows are about as long as the context."""
        return self.context - 120

    def engine(self) -> LoadedEngine:
        length = self.prompt + _MARGIN
        budget = 640 + int(DEFAULT.ratio * length)
        return random_engine(self.model, limits(self.batch, length, _CHUNK, budget), torch.device("cuda"))

    def traffic(self) -> Traffic:
        return Traffic(random_prompts(QWEN3_8B.vocab_size, self.batch, self.prompt), greedy(_MARGIN - 10))


def forced(choice: Choice) -> Results:
    """96 requests at 8k: plain, and speculative at every agreement."""
    case = _Case(choice.batch or 96, choice.context or 8192)
    engine, traffic, mean = case.engine(), case.traffic(), _mean()
    yield Rig(engine, _CHUNK, predicts=True).run("plain", PLAIN, traffic, PLAIN_STEPS)
    release()
    rig = Rig(
        engine, _CHUNK, prepare=partial(force, mean=mean), measure_more=partial(_others, mean=mean), predicts=True
    )
    yield rig.run(f"agreement {PAPER_AGREEMENT}", DEFAULT, traffic, cycle_steps(DEFAULT, CYCLES))
    release()


def sweep_context(choice: Choice) -> Results:
    """Contexts at a constant number of tokens in all."""
    for context in _CONTEXTS if choice.context is None else (choice.context,):
        case = _Case(_TOTAL // context, context)
        engine, traffic = case.engine(), case.traffic()
        name = f"{case.batch} x {context}"
        yield Rig(engine, _CHUNK).run(f"{name} none", PLAIN, traffic, PLAIN_STEPS)
        release()
        rig = Rig(engine, _CHUNK, prepare=partial(force, mean=_mean()))
        yield rig.run(f"{name} agreement {PAPER_AGREEMENT}", DEFAULT, traffic, cycle_steps(DEFAULT, CYCLES))
        release()


def latency(choice: Choice) -> Results:
    """While 32 requests decode at 4k, prompts of 32k join them, in chunks of two sizes."""
    batch, context, joining = choice.batch or 32, choice.context or 4096, 32768
    for chunk_size in (1024, 256):
        engine = random_engine(QWEN3_8B, limits(batch + 1, joining + 1000, chunk_size), torch.device("cuda"))
        kv_tokens = batch * (context + 3100) + 2 * (joining + 1000)
        case = LatencyCase(
            traffic=Traffic(random_prompts(QWEN3_8B.vocab_size, batch, context), greedy(3000)),
            joining=Traffic(random_prompts(QWEN3_8B.vocab_size, 2, joining, seed=2), greedy(500)),
            runtime=RuntimeConfig(chunk_size=chunk_size, result_lag=RESULT_LAG, max_tokens_in_paged_kv_cache=kv_tokens),
        )
        yield measure_latency(engine, "plain", PLAIN, case)
        release()
        agreeing = replace(case, prepare=partial(force, mean=_mean()))
        yield measure_latency(engine, f"agreement {PAPER_AGREEMENT}", DEFAULT, agreeing)
        release()


def force(llm: LLM, mean: torch.Tensor) -> None:
    """Before the first step: drafts agree as often as `mean` says at the time of a step."""
    executor = graph_executor(llm)
    executor.replace_step_ops(ForcedAgreement(executor.step_ops, mean))


def _mean() -> torch.Tensor:
    return torch.tensor(PAPER_AGREEMENT, device="cuda")


def _others(load: Load, mean: torch.Tensor) -> tuple[Window, ...]:
    """A window for each of AGREEMENTS."""
    windows = []
    for agreement in AGREEMENTS:
        mean.fill_(agreement)
        windows.append(load.measure(cycle_steps(DEFAULT, 3)))
    mean.fill_(PAPER_AGREEMENT)
    return tuple(windows)
