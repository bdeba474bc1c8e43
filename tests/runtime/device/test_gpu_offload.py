"""KV pages to host memory and back on a GPU, beside steps that nobody stops for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from bf16_equality import measure
from sparsespec.builder.build_config import KvCacheDType
from sparsespec.plugins.phase import Phase
from sparsespec.runtime.config import GraphsName, Policy, RuntimeConfig, SpeculationConfig
from sparsespec.runtime.device.graph_executor import GraphExecutor
from sparsespec.runtime.device.page_copies import PageCopies
from sparsespec.runtime.device.torch_executor import TorchExecutor
from sparsespec.runtime.llm import LLM
from sparsespec.runtime.loading import LoadedEngine
from sparsespec.runtime.scheduled_step import PageGrant, PageMove, ScheduledRows, ScheduledStep
from sparsespec.runtime.step_counts import StepCounter
from sparsespec.runtime.tracing import HostTrace
from tiny_llm import BUILD, DraftCounts, assert_all_pages_free, first_answers, greedy, random_prompts, tiny_engine
from tiny_models import tiny_model_config

pytestmark = pytest.mark.gpu

BUDGET = 24
SPECULATION = SpeculationConfig(k=4, min_budget=BUDGET)
LARGE = RuntimeConfig(attention="plugins", chunk_size=32)
# 4 slots of up to 9 pages of 16 tokens each.
SMALL = replace(LARGE, max_tokens_in_paged_kv_cache=11 * 16, kv_cache_host_memory_bytes=2**24)
PROMPTS = random_prompts((20, 37, 9, 30, 26, 14, 33, 5))
NEW_TOKENS = 96

Record = Callable[[str, object], None]


def on_gpu(kv_cache_dtype: KvCacheDType = "auto") -> LoadedEngine:
    """Three query heads for each of two KV heads of 64."""
    model = tiny_model_config(num_heads=6, num_kv_heads=2, head_dim=64)
    build = replace(BUILD, dtype="bfloat16", page_size=16, kv_cache_dtype=kv_cache_dtype)
    engine = tiny_engine(0, build, model)
    return LoadedEngine(engine.config, {name: weight.cuda() for name, weight in engine.weights.items()}, engine.codec)


class MoveCounter(HostTrace):
    """What the steps moved."""

    def __init__(self) -> None:
        super().__init__()
        self.restores = 0

    def count(self, step: ScheduledStep, counter: StepCounter) -> None:
        """See Recorder."""
        self.restores += len(step.restores)


@pytest.mark.parametrize("kv_cache_dtype", ["auto", "fp8"])
@pytest.mark.parametrize("graphs", ["on", "off"])
@pytest.mark.parametrize(("policy", "lag"), [("unified", 1), ("lockstep", 3), ("unified", 0)])
def test_a_small_pool_gives_plain_decodings_tokens(
    policy: Policy, lag: int, graphs: GraphsName, kv_cache_dtype: KvCacheDType, record_property: Record
) -> None:
    """Up to near-ties, as a large pool does: a page that was not copied in time would show."""
    engine, moves = on_gpu(kv_cache_dtype), MoveCounter()
    config = replace(SMALL, policy=policy, result_lag=lag, cuda_graphs=graphs)
    llm = LLM(engine, SPECULATION, config, moves)
    outputs = llm.generate(PROMPTS, greedy(NEW_TOKENS))
    assert_all_pages_free(llm)
    assert isinstance(llm.executor, GraphExecutor) == (graphs == "on")
    assert moves.restores > 1
    counts = DraftCounts.of(outputs)
    assert counts.longest_context > BUDGET
    assert counts.accepted > 0
    assert counts.rejected > 0
    found = measure(engine, outputs, LARGE)
    record_property("tiny models, pages moved: eps in logits", found.eps)
    assert found.num_beyond == 0
    assert found.eps < (0.25 if kv_cache_dtype == "auto" else 1)


def test_the_host_waits_for_no_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """What would wait for the GPU is an error when a step begins that admits nobody; pages move in some of these."""
    begin, num_moved = TorchExecutor.begin, 0

    def watched(self: TorchExecutor, step: ScheduledStep) -> None:
        nonlocal num_moved
        if step.admissions:
            begin(self, step)
            return
        num_moved += sum(len(move.pages) for move in (*step.offloads, *step.restores))
        with no_waiting():
            begin(self, step)

    monkeypatch.setattr(TorchExecutor, "begin", watched)
    outputs = LLM(on_gpu(), SPECULATION, SMALL).generate(PROMPTS, greedy(NEW_TOKENS))
    assert num_moved > 0
    assert [len(answer) for answer in first_answers(outputs)] == [NEW_TOKENS] * len(PROMPTS)


@contextmanager
def no_waiting() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


class Copied:
    """Three pages on their way to host memory and, by `restore`, to others."""

    def __init__(self) -> None:
        self.pool = torch.randn(4, 8, 2, 2, 16, 64, device="cuda", dtype=torch.bfloat16)
        self.copies = PageCopies(self.pool, 8)
        self.before = self.pool[:, 2:5].clone()

    def hold_up(self) -> None:
        """Whatever is enqueued for copying from now on comes late."""
        with torch.cuda.stream(self.copies._stream):
            torch.cuda._sleep(10**8)

    def offload(self) -> None:
        self.enqueue(ScheduledStep(0, (), (), (), offloads=(PageMove(0, (2, 3, 4), (7, 0, 1)),)))

    def restore(self) -> None:
        self.enqueue(ScheduledStep(1, (), (), (), restores=(PageMove(0, (5, 0, 7), (7, 0, 1)),)))

    def enqueue(self, step: ScheduledStep) -> None:
        with no_waiting():
            self.copies.enqueue(step)

    def restored(self) -> torch.Tensor:
        return self.pool[:, [5, 0, 7]]


def grant(index: int, pages: tuple[int, ...]) -> ScheduledStep:
    return ScheduledStep(index, (), (PageGrant(0, 0, pages),), ())


def draft_of(slot: int) -> ScheduledStep:
    needs = greedy(1).needs
    row = ScheduledRows(slot, 0, Phase.DRAFT, 1, 0, num_logits=1, block_rows=0, scored=False, needs=needs)
    return ScheduledStep(2, (), (), (row,))


def test_a_copy_follows_the_steps_before_it() -> None:
    copied = Copied()
    torch.cuda._sleep(10**8)
    copied.pool[:, 2:5] += 1  # by a step
    copied.offload()
    copied.restore()
    torch.cuda.synchronize()
    assert copied.restored().equal(copied.before + 1)


def test_a_step_that_reuses_pages_follows_their_copy() -> None:
    copied = Copied()
    copied.hold_up()
    copied.offload()
    copied.enqueue(grant(1, (2, 3, 4)))
    copied.pool[:, 2:5] = 0  # by that step
    copied.restore()
    torch.cuda.synchronize()
    assert copied.restored().equal(copied.before)
    assert not copied.pool[:, 2:5].any()


def test_a_step_of_a_slot_follows_the_copy_that_brings_its_pages() -> None:
    copied = Copied()
    copied.offload()
    copied.hold_up()
    copied.restore()
    copied.enqueue(draft_of(slot=0))
    found = copied.restored()  # by that step
    torch.cuda.synchronize()
    assert found.equal(copied.before)


def test_a_step_that_reuses_pages_follows_the_copy_of_a_request_that_was_cancelled_meanwhile() -> None:
    copied = Copied()
    copied.offload()
    copied.hold_up()
    copied.restore()
    copied.enqueue(grant(2, (5, 0, 7)))
    copied.pool[:, [5, 0, 7]] = 0  # by that step
    torch.cuda.synchronize()
    assert not copied.restored().any()


def test_steps_without_its_pages_pass_a_copy() -> None:
    """The copy's stream is held up; a step that needs none of its pages ends meanwhile."""
    copied = Copied()
    copied.hold_up()
    copied.offload()
    with torch.cuda.stream(copied.copies._stream):
        torch.cuda._sleep(4 * 10**9)
    copied.enqueue(grant(1, (6, 7)))
    step = torch.cuda.Event()
    step.record()
    step.synchronize()
    assert not copied.copies._stream.query()
    torch.cuda.synchronize()
