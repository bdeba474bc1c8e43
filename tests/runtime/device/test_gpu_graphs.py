"""CUDA graphs of whole steps: how many there are, what is in them, and that the host waits for none."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace

import pytest
import torch

from random_cycles import RandomCycles
from sparsespec.builder.model_config import ModelConfig
from sparsespec.runtime.config import RuntimeConfig, SpeculationConfig
from sparsespec.runtime.cost_model import CostModel
from sparsespec.runtime.cycles import Cycles
from sparsespec.runtime.device.early_graphs import early_shapes
from sparsespec.runtime.device.graph_executor import GraphExecutor
from sparsespec.runtime.device.latency_measurement import measure_latencies
from sparsespec.runtime.device.step_graphs import StepGraphs, StepShape
from sparsespec.runtime.llm import LLM
from sparsespec.runtime.outputs import CompletionOutput
from sparsespec.runtime.results import TokenLogprobs
from sparsespec.runtime.sampling_params import LogitNeeds, SamplingParams
from sparsespec.runtime.step_sizes import sizes_up_to
from throughput_study.engines import QWEN3_8B, random_engine
from throughput_study.settings import greedy, limits
from throughput_study.texts import random_prompts
from throughput_study.timeline import record
from throughput_study.windows import Load

pytestmark = pytest.mark.gpu

SMOLLM2_135M = replace(
    QWEN3_8B,
    family="llama",
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_heads=9,
    num_kv_heads=3,
    head_dim=64,
    tie_word_embeddings=True,
    eos_token_ids=(2,),
)
QWEN3 = replace(QWEN3_8B, vocab_size=32000, eos_token_ids=(2,))
PLAIN = SpeculationConfig(drafter="none")
PILLAR = SpeculationConfig(min_budget=64)
BATCH, PROMPT = 64, 300

Record = Callable[[str, object], None]


def steady(
    model: ModelConfig,
    speculation: SpeculationConfig,
    batch: int = BATCH,
    result_lag: int = 1,
    cycles: Cycles | None = None,
) -> Load:
    """Requests that all decode."""
    engine = random_engine(model, limits(batch, 1000, 4096), torch.device("cuda"))
    llm = LLM(engine, speculation, RuntimeConfig(chunk_size=4096, result_lag=result_lag), cycles=cycles)
    load = Load(llm, random_prompts(model.vocab_size, batch, PROMPT), greedy(600))
    load.warm_up()
    return load


@pytest.mark.parametrize("speculation", [PLAIN, PILLAR], ids=["plain", "pillar"])
@pytest.mark.parametrize(
    ("model", "batch"),
    [(SMOLLM2_135M, 512), (SMOLLM2_135M, 1), (QWEN3, 96), (QWEN3, 8)],
    ids=["smollm2-512", "smollm2-1", "qwen3-96", "qwen3-8"],
)
def test_at_most_ten_kernels_a_layer(
    model: ModelConfig, batch: int, speculation: SpeculationConfig, record_property: Record
) -> None:
    """Two numbers of layers, so that what a step has once does not count; all that cuBLAS launches does."""
    few, many = (_steady_kernels(replace(model, num_layers=layers), speculation, batch) for layers in (2, 6))
    per_layer = (len(many) - len(few)) / 4
    record_property("kernels a layer", per_layer)
    record_property("kernels of a step besides", len(few) - 2 * per_layer)
    assert per_layer <= 10
    assert len(few) - 2 * per_layer <= 10


def _steady_kernels(model: ModelConfig, speculation: SpeculationConfig, batch: int) -> list[str]:
    """Names of the kernels of one step."""
    runs = record(steady(model, speculation, batch).step, 4)
    starts = [index for index, run in enumerate(runs) if "step_rows" in run.name]
    return [run.name for run in runs[starts[1] : starts[2]]]


def test_only_the_shapes_that_came_up_are_captured() -> None:
    load = steady(replace(SMOLLM2_135M, num_layers=2), PLAIN)
    executor = load.llm.executor
    assert isinstance(executor, GraphExecutor)
    captured = executor.graphs.captured
    assert _decoding(executor) == [StepShape.of_every_row(BATCH)]
    assert all(each.num_bytes >= 0 for each in captured.values())
    load.measure(20)
    assert list(executor.graphs.captured) == list(captured)


def _decoding(executor: GraphExecutor) -> list[StepShape]:
    """Captured shapes without chunks of prompts."""
    return [shape for shape in executor.graphs.captured if shape.every_row]


def test_a_shape_without_chunks_is_captured_when_it_first_comes_up() -> None:
    load = steady(replace(SMOLLM2_135M, num_layers=2), PLAIN)
    executor = load.llm.executor
    assert isinstance(executor, GraphExecutor)
    for num_rows, more in ((200, 1), (200, 0), (208, 0), (209, 1)):
        before = len(_decoding(executor))
        executor.run_idle(StepShape.of_every_row(num_rows), times=1)
        assert len(_decoding(executor)) == before + more


def test_an_adaptive_engine_has_the_graphs_of_its_steps_from_the_start() -> None:
    engine = random_engine(replace(SMOLLM2_135M, num_layers=2), limits(BATCH, 1000, 4096), torch.device("cuda"))
    llm = LLM(engine, replace(PILLAR, adaptive=True), RuntimeConfig(chunk_size=4096))
    assert isinstance(llm.executor, GraphExecutor)
    found = _decoding(llm.executor)
    assert all(StepShape.of_every_row(size) in found for size in sizes_up_to(BATCH))
    assert all(shape in found for shape in early_shapes(BATCH, PILLAR.draft_len, llm.executor.max_scored))


def test_what_requests_want_besides_runs_in_graphs() -> None:
    """The tokens and log-probabilities of steps of varying shapes, but for near ties in bfloat16."""
    engine = random_engine(replace(SMOLLM2_135M, num_layers=2), limits(BATCH, 1000, 4096), torch.device("cuda"))
    wishes = (
        replace(greedy(24), repetition_penalty=1.2, frequency_penalty=0.3, logprobs=5),
        replace(greedy(24), min_tokens=12, stop_token_ids=(5,), presence_penalty=-0.5),
        SamplingParams(max_tokens=24, temperature=0.8, seed=1, ignore_eos=True, logprobs=0),
        greedy(24),
    )
    found, expected = (_answers(LLM(engine, PILLAR, RuntimeConfig(cuda_graphs=each)), wishes) for each in ("on", "off"))
    pairs = [pair for mine, theirs in zip(found, expected, strict=True) for pair in _until_they_differ(mine, theirs)]
    assert len(pairs) > 0.5 * sum(len(each.token_ids) for each in expected)
    told = [(mine.logprob, theirs.logprob) for mine, theirs in pairs if mine is not None and theirs is not None]
    assert len(told) > 100
    assert all(abs(mine - theirs) < 0.1 for mine, theirs in told)


def _answers(llm: LLM, wishes: Sequence[SamplingParams]) -> list[CompletionOutput]:
    prompts = random_prompts(SMOLLM2_135M.vocab_size, 16, 90)
    ids = [llm.add_request(prompt, wishes[place % len(wishes)]) for place, prompt in enumerate(prompts)]
    for _ in llm.run(ids):
        pass
    if isinstance(llm.executor, GraphExecutor):
        needs = [shape.needs for shape in llm.executor.graphs.captured]
        assert LogitNeeds(penalties=True, early_stops=True, logprobs=True) in needs
    return [llm.take_output(each).outputs[0] for each in ids]


def _until_they_differ(
    mine: CompletionOutput, theirs: CompletionOutput
) -> Iterator[tuple[TokenLogprobs | None, TokenLogprobs | None]]:
    """Of both answers, token by token as far as they are equal; None of a request that asked for none."""
    for place, (token, other) in enumerate(zip(mine.token_ids, theirs.token_ids, strict=False)):
        if token != other:
            return
        yield (mine.logprobs[place], theirs.logprobs[place]) if theirs.logprobs else (None, None)


def test_graphs_are_captured_while_the_gpu_is_busy() -> None:
    """Work that takes the GPU much longer than a capture takes the host is not over when one has been made.

    Of kernels that have run before: CUDA waits for the GPU when it loads one.
    """
    load = steady(replace(SMOLLM2_135M, num_layers=2), PLAIN)
    executor = load.llm.executor
    assert isinstance(executor, GraphExecutor)
    shape = StepShape.of_every_row(200)
    executor.run_idle(shape, times=2)
    torch.cuda.synchronize()
    torch.cuda._sleep(10**10)
    done = torch.cuda.Event()
    done.record()
    executor.run_idle(replace(shape, drafts_only=True), times=1)
    assert replace(shape, drafts_only=True) in executor.graphs.captured
    assert not done.query()


def test_a_capture_outlives_what_the_collector_would_destroy() -> None:
    """Graphs of an engine that is gone: to destroy one would end the capture with an error."""
    counter, spare = torch.zeros(1, device="cuda"), [_graph_of_a_copy()]

    def enqueue(_: StepShape) -> None:
        counter.add_(1)
        if torch.cuda.is_current_stream_capturing():
            ring: list[object] = [spare.pop()]
            ring.append(ring)
            del ring
            assert len([[] for _ in range(3 * gc.get_threshold()[0])]) > 0  # begins a collection, if one may

    graphs, shape = StepGraphs(torch.device("cuda")), StepShape.of_every_row(1)
    for _ in range(2):
        graphs.run(shape, enqueue)
    assert graphs.num_captured == 1
    assert counter.item() == 2
    assert spare == []


def _graph_of_a_copy() -> torch.cuda.CUDAGraph:
    graph, tensor = torch.cuda.CUDAGraph(keep_graph=True), torch.zeros(1, device="cuda")
    with torch.cuda.graph(graph):
        tensor.clone()
    graph.instantiate()
    return graph


def test_steps_are_started_while_the_gpu_is_busy() -> None:
    """Work that takes the GPU much longer than the host takes for three steps is not over when they are started."""
    load = steady(replace(SMOLLM2_135M, num_layers=2), PILLAR, result_lag=8)
    load.measure(18)
    torch.cuda.synchronize()
    torch.cuda._sleep(10**9)
    done = torch.cuda.Event()
    done.record()
    for _ in range(3):
        load.step()
    assert not done.query()


def test_blocks_set_what_drafts_read_by_their_steps_budget() -> None:
    """Of several that take turns in captured graphs, the last one for longer than a cycle."""
    cycles = RandomCycles(1)
    load = steady(replace(SMOLLM2_135M, num_layers=2), PILLAR, cycles=cycles)
    executor = load.llm.executor
    assert isinstance(executor, GraphExecutor)
    configs = [replace(PILLAR, min_budget=budget) for budget in (64, 32, 128)]
    executor.budgets.offer(configs)
    cycles.budgets = (0, 1, 2)
    state = executor.memory.state
    for place, config in enumerate(configs):
        load.measure(18)
        cycles.budgets = (place,)
        load.measure(18)
        cycles.budgets = (0, 1, 2)
        budget = torch.tensor([config.budget(kv_len) for kv_len in state.kv_len.tolist()])
        lookups = min(config.max_lookups, int(budget[0]) // 2)
        chosen = state.num_staying + state.num_moving + state.lookup_budget
        assert chosen.cpu().tolist() == (budget - budget // 4).tolist()
        assert state.lookup_budget.tolist() == [lookups] * BATCH


@pytest.mark.parametrize("batch", [1, BATCH])
def test_latencies_are_measured_and_leave_nothing_behind(batch: int, record_property: Record) -> None:
    load = steady(replace(SMOLLM2_135M, num_layers=30), PILLAR, batch)
    executor = load.llm.executor
    assert isinstance(executor, GraphExecutor)
    state = executor.memory.state
    before = [tensor.clone() for tensor in (state.kv_len, state.token_ids, state.pillars, executor.memory.kv_pool)]
    costs = CostModel(((1, 0.0), (100, 1e-9)), 1, 1e15, 1e15, 1e15)
    latencies = measure_latencies(executor, costs)
    for name, seconds in asdict(latencies).items():
        record_property(f"a step of one slot or two, {name}, seconds", seconds)
    assert 0 < latencies.plain < 0.1
    assert min(latencies.draft, latencies.verify, latencies.mixed) > 0
    after = (state.kv_len, state.token_ids, state.pillars, executor.memory.kv_pool)
    assert all(torch.equal(*each) for each in zip(before, after, strict=True))
    load.measure(9)
