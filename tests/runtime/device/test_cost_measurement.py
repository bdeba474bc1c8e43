"""Costs measured on the CPU: what matters here is that measuring leaves no trace, and what comes of the numbers."""

from __future__ import annotations

from dataclasses import astuple, fields, replace

import pytest
import torch
from torch import Tensor

from sparsespec.builder.errors import InputError
from sparsespec.runtime.config import PolicyName, RuntimeConfig, SpeculationConfig
from sparsespec.runtime.cost_model import CostModel
from sparsespec.runtime.device.cost_measurement import measure_costs, measure_rows, read_shares, row_counts
from sparsespec.runtime.device.cycle_choice import budgets_to_choose_from
from sparsespec.runtime.device.graph_executor import GraphExecutor
from sparsespec.runtime.device.latency_measurement import measure_latencies
from sparsespec.runtime.llm import LLM
from tiny_llm import BUILD, assert_all_pages_free, first_answers, greedy, random_prompts, tiny_engine, ways_to_draft

SPECULATION = SpeculationConfig(k=4, ratio=0.1, min_budget=16, max_lookups=8)
FIXED = ("default", "exact", "paper", "window", "ngram")
GRAPHS = RuntimeConfig(cuda_graphs="on")
PROMPTS = random_prompts((37, 80, 1, 61))
COSTS = CostModel(((1, 0.0), (100, 1e-9)), 1, 1e15, 1e15, 1e15)  # next to nothing, so that all of a step is latency


def running(rule: str) -> tuple[LLM, GraphExecutor]:
    """In the midst of answers."""
    llm = LLM(tiny_engine(), ways_to_draft(SPECULATION)[rule], GRAPHS)
    for prompt in PROMPTS:
        llm.add_request(prompt, greedy(40))
    for _ in range(17):
        llm.step()
    assert isinstance(llm.executor, GraphExecutor)
    return llm, llm.executor


def tensors_of(executor: GraphExecutor) -> dict[str, Tensor]:
    """All that outlives a step."""
    memory = executor.memory
    owned = {field.name: getattr(memory.state, field.name) for field in fields(memory.state)}
    return owned | {"kv_pool": memory.kv_pool, "scores": memory.scores, "budget": memory.budget}


@pytest.mark.parametrize("rule", FIXED)
def test_measuring_changes_nothing(rule: str) -> None:
    """Not even between steps of running requests, whose tokens come out as they would have."""
    llm, executor = running(rule)
    before = {name: tensor.clone() for name, tensor in tensors_of(executor).items()}
    measured = measure_rows(executor, (1, 8, 32))
    assert [rows for rows, _ in measured] == [1, 8, 32]
    assert all(seconds > 0 for _, seconds in measured)
    assert before["kv_len"].max() > 0
    assert before["kv_pool"].abs().max() > 0
    for name, tensor in tensors_of(executor).items():
        assert torch.equal(tensor, before[name]), name
    assert answers(llm) == answers(running(rule)[0])


def answers(llm: LLM) -> list[tuple[int, ...]]:
    while llm.has_requests:
        llm.step()
    return [llm.take_output(number).outputs[0].token_ids for number in range(len(PROMPTS))]


@pytest.mark.parametrize("rule", [rule for rule in FIXED if rule != "ngram"])
def test_measuring_latencies_changes_nothing(rule: str) -> None:
    """Though it is the first two slots that run; scores are a step's own. Without draft steps nothing is adaptive."""
    llm, executor = running(rule)
    before = {name: tensor.clone() for name, tensor in tensors_of(executor).items() if name != "scores"}
    latencies = measure_latencies(executor, COSTS)
    assert min(astuple(latencies)) > 0
    for name, tensor in before.items():
        assert torch.equal(tensors_of(executor)[name], tensor), name
    assert answers(llm) == answers(running(rule)[0])


def test_measured_costs_have_the_engines_sizes() -> None:
    _, executor = running("default")
    engine = tiny_engine().config
    costs = measure_costs(executor, engine, most_rows=20)
    assert costs.kv_bytes_per_token == engine.model.kv_bytes_per_token(8)
    assert [rows for rows, _ in costs.rows] == [1, 8, 16, 32]
    assert costs.plain_bandwidth > costs.verify_bandwidth > costs.draft_bandwidth > 0
    assert min(astuple(costs.latencies)) >= 0


def test_latencies_of_an_engine_for_one_request() -> None:
    """Its steps never draft and verify at once; what such a step would take is a verification's."""
    llm = LLM(tiny_engine(), SPECULATION, replace(GRAPHS, max_batch_size=1))
    assert isinstance(llm.executor, GraphExecutor)
    assert min(astuple(measure_latencies(llm.executor, COSTS))) > 0
    assert llm.executor.memory.state.kv_len.tolist() == [0]


@pytest.mark.parametrize(
    ("most", "counts"), [(2, (1, 8)), (5, (1, 8)), (9, (1, 8, 16)), (100, (1, 8, 16, 32, 64, 112))]
)
def test_rows_are_measured_at_graphs_own_sizes(most: int, counts: tuple[int, ...]) -> None:
    assert row_counts(most) == counts


def test_drafts_read_at_the_smallest_share_of_the_bandwidth() -> None:
    engine = tiny_engine().config
    engines = [engine, replace(engine, model=replace(engine.model, head_dim=128))]
    engines += [replace(each, build=replace(BUILD, kv_cache_dtype="fp8")) for each in engines]
    shares = [read_shares(each) for each in engines]
    assert len(dict.fromkeys(shares)) == 4
    assert all(1 > each.plain > each.verify > each.draft > 0 for each in shares)


@pytest.mark.parametrize("policy", ["auto", "unified", "lockstep"])
def test_adaptive_speculation_gives_plain_decodings_tokens(policy: PolicyName) -> None:
    """By costs as they are here; whatever they say."""
    plain = first_answers(LLM(tiny_engine(), SpeculationConfig(drafter="none")).generate(PROMPTS, greedy(60)))
    llm = LLM(tiny_engine(), replace(SPECULATION, adaptive=True), replace(GRAPHS, policy=policy))
    assert llm.choice is not None
    before = llm.choice
    assert before.way.num_drafts == 0  # nothing is known of a load yet
    assert first_answers(llm.generate(PROMPTS, greedy(60))) == plain
    assert llm.choice.load.num_requests > 0
    assert policy in ("auto", llm.choice.way.policy)
    assert_all_pages_free(llm)


def test_nothing_is_chosen_without_a_chooser() -> None:
    assert LLM(tiny_engine(), SPECULATION, GRAPHS).choice is None


def test_adaptive_needs_costs_that_can_be_measured() -> None:
    with pytest.raises(InputError, match="adaptive: expected steps of fixed shapes"):
        LLM(tiny_engine(), replace(SPECULATION, adaptive=True), RuntimeConfig(cuda_graphs="off"))


def test_budgets_to_choose_from_are_within_the_engines() -> None:
    """max_budget 256, max_seq_len 256; the config's own comes first."""
    for ratio, min_budget, ratios in ((0.2, 16, [0.2, 0.1, 0.4]), (0.6, 16, [0.6, 0.3, 1.0]), (0.05, 192, [0.05])):
        own = replace(SPECULATION, ratio=ratio, min_budget=min_budget)
        assert [each.ratio for each in budgets_to_choose_from(own, BUILD)] == ratios
    tight = replace(BUILD, max_budget=60)
    assert [each.ratio for each in budgets_to_choose_from(replace(SPECULATION, ratio=0.2), tight)] == [0.2, 0.1]
