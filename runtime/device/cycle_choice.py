"""Who says how many drafts a cycle has: always k, or a chooser that has measured what steps cost here."""

from __future__ import annotations

from typing import Any

from sparsespec.builder.engine_dir import EngineConfig
from sparsespec.builder.errors import InputError
from sparsespec.runtime.adaptive_cycles import AdaptiveCycles, CommonEnds, SpreadEnds
from sparsespec.runtime.chooser import Chooser, Options
from sparsespec.runtime.config import Policy, SpeculationConfig
from sparsespec.runtime.cost_model import DraftReads
from sparsespec.runtime.cycles import Cycles, FixedCycles
from sparsespec.runtime.device.cost_measurement import capture_plain, measure_costs
from sparsespec.runtime.device.executor import Executor
from sparsespec.runtime.device.graph_executor import GraphExecutor


def choose_cycles(
    executor: Executor[Any, Any], engine: EngineConfig, speculation: SpeculationConfig, policy: Policy
) -> Cycles:
    """What speculation.adaptive means here. Raises InputError where it is asked for and costs cannot be measured."""
    if not speculation.adaptive:
        return FixedCycles(policy)
    if not isinstance(executor, GraphExecutor):
        raise InputError(
            "adaptive: expected steps of fixed shapes, whose costs can be measured beforehand (cuda_graphs on, or auto "
            "where the CUDA kernels run), found steps of varying shapes"
        )
    max_batch_size = len(executor.memory.state.kv_len)
    capture_plain(executor, max_batch_size)
    most_rows = min(engine.build.max_num_tokens, max_batch_size * (speculation.draft_len + 1))
    options = Options(
        max_drafts=speculation.draft_len,
        policies=(policy,),
        reads=(DraftReads(speculation.ratio, speculation.min_budget),),
        max_kv_share=speculation.max_drafting_kv_share,
    )
    ends = SpreadEnds() if policy == "unified" else CommonEnds()
    return AdaptiveCycles(Chooser(measure_costs(executor, engine, most_rows), options), ends)
