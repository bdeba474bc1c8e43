"""Who says how many drafts a cycle has: always k, or a chooser that has measured what steps cost here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from time import perf_counter
from typing import Any

from sparsespec.builder.build_config import BuildConfig
from sparsespec.builder.engine_dir import EngineConfig
from sparsespec.builder.errors import InputError
from sparsespec.runtime.adaptive_cycles import AdaptiveCycles, Moment
from sparsespec.runtime.chooser import Chooser, Options
from sparsespec.runtime.config import PolicyName, SpeculationConfig
from sparsespec.runtime.cost_model import DraftReads
from sparsespec.runtime.cycles import Cycles, FixedCycles
from sparsespec.runtime.device.cost_measurement import measure_costs
from sparsespec.runtime.device.early_graphs import capture_early
from sparsespec.runtime.device.executor import Executor
from sparsespec.runtime.device.graph_executor import GraphExecutor

# Beside the one asked for. From 2.5% to 20% SmolLM2's best speeds at 4k lie within a few percent of each other
# (docs/performance.md), so that finer steps would be lost among what is not modelled.
_OTHER_RATIOS = (0.5, 2.0)
# With a batch that is small, costs are known for so many nevertheless: from there on they are proportional.
_PROMPT_ROWS = 512


def choose_cycles(
    executor: Executor[Any, Any], engine: EngineConfig, speculation: SpeculationConfig, policy: PolicyName
) -> Cycles:
    """What speculation.adaptive means here. Raises InputError where it is asked for and costs cannot be measured."""
    if not speculation.adaptive:
        return FixedCycles("unified" if policy == "auto" else policy)
    if not isinstance(executor, GraphExecutor):
        raise InputError(
            "adaptive: expected steps of fixed shapes, whose costs can be measured beforehand (cuda_graphs on, or auto "
            "where the CUDA kernels run), found steps of varying shapes"
        )
    max_batch_size = len(executor.memory.state.kv_len)
    budgets = budgets_to_choose_from(speculation, engine.build)
    executor.budgets.offer(budgets)
    capture_early(executor, speculation.draft_len)
    most_rows = min(engine.build.max_num_tokens, max(_PROMPT_ROWS, max_batch_size * (speculation.draft_len + 1)))
    options = Options(
        max_drafts=speculation.draft_len,
        policies=("unified", "lockstep") if policy == "auto" else (policy,),
        reads=tuple(DraftReads(each.ratio, each.min_budget) for each in budgets),
        max_kv_share=speculation.max_drafting_kv_share,
    )
    return AdaptiveCycles(Chooser(measure_costs(executor, engine, most_rows), options), _clock(executor))


def _clock(executor: GraphExecutor) -> Callable[[], Moment]:
    return lambda: Moment(perf_counter(), executor.graphs.num_captured)


def budgets_to_choose_from(speculation: SpeculationConfig, build: BuildConfig) -> list[SpeculationConfig]:
    """The config's own budget first, then those of other ratios that are within the engine's max_budget."""
    others = [replace(speculation, ratio=min(1.0, speculation.ratio * factor)) for factor in _OTHER_RATIOS]
    differ = [each for each in others if each.budget(build.max_seq_len) != speculation.budget(build.max_seq_len)]
    return [speculation, *(each for each in differ if each.budget(build.max_seq_len) <= build.max_budget)]
