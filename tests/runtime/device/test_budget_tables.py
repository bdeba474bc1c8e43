"""One of several budgets at one address: what drafts read after blocks that end."""

from __future__ import annotations

from dataclasses import replace

import pytest

from random_cycles import RandomCycles
from sparsespec.runtime.config import RuntimeConfig, SpeculationConfig
from sparsespec.runtime.device.budget_tables import BudgetTables, budget_of
from sparsespec.runtime.device.drafter import make_drafter
from sparsespec.runtime.device.graph_executor import GraphExecutor
from sparsespec.runtime.llm import LLM
from tiny_llm import greedy, random_prompts, tiny_engine

SPECULATION = SpeculationConfig(k=4, ratio=0.1, min_budget=16, max_lookups=4)
OTHERS = (replace(SPECULATION, min_budget=8), replace(SPECULATION, ratio=0.3))
LENGTHS = 300


def test_the_table_at_work_is_the_one_in_use_and_stays_where_it_is() -> None:
    drafter = make_drafter(SPECULATION)
    budget = budget_of(SPECULATION, LENGTHS)
    tables = BudgetTables(budget, drafter)
    addresses = budget.data_ptr(), tables.split.data_ptr()
    configs = (SPECULATION, *OTHERS)
    tables.offer(configs)
    for place in (0, 1, 2, 2, 1, 0):
        tables.use(place)
        expected = [configs[place].budget(kv_len) for kv_len in range(LENGTHS)]
        assert budget.tolist() == expected
        assert tables.split.sum(dim=1).tolist() == expected
        assert (budget.data_ptr(), tables.split.data_ptr()) == addresses


@pytest.mark.parametrize("place", [0, 1, 2])
def test_drafts_read_what_their_steps_say(place: int) -> None:
    """As much as an engine of that config alone would have them read, by its own steps and by those without graphs."""
    configs = (SPECULATION, *OTHERS)
    read = []
    for config, used in ((SPECULATION, place), (configs[place], 0)):
        llm = LLM(tiny_engine(), config, RuntimeConfig(cuda_graphs="on"), cycles=RandomCycles(1, (used,)))
        assert isinstance(llm.executor, GraphExecutor)
        llm.executor.budgets.offer(configs if config is SPECULATION else (config,))
        params = (greedy(40), greedy(40), replace(greedy(40), logprobs=1), replace(greedy(30), repetition_penalty=1.1))
        ids = [llm.add_request(each, wish) for each, wish in zip(random_prompts((80, 61, 90, 70)), params, strict=True)]
        for _ in llm.run(ids):
            pass
        read.append([check for each in ids for check in llm.take_output(each).outputs[0].verifications])
    assert read[0] == read[1]
    assert any(check.num_accepted for check in read[0])
