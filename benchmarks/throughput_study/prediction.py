"""What a step should take: the chooser's cost model, measured on the same engine in the same run."""

from __future__ import annotations

from sparsespec.runtime import cycles
from sparsespec.runtime.cost_model import DraftReads, Way
from sparsespec.runtime.device.cost_measurement import measure_costs
from sparsespec.runtime.device.graph_executor import GraphExecutor
from sparsespec.runtime.llm import LLM
from throughput_study.windows import Window


def predicted_step_ms(llm: LLM, window: Window) -> float:
    """Of the window's requests at its context, in unified cycles; these have ended, since their slots are borrowed.

    From the time of steps of so many rows without attention, and the bytes that plain steps, verifications and drafts
    read, at the measured bandwidth of a read and the shares of it that their kernels reach alone.
    """
    speculation, config = llm.speculation, llm.engine.config
    k = speculation.num_draft_steps
    num_rows = -(-window.num_requests * (2 * k + 1) // (k + 1))
    costs = measure_costs(graph_executor(llm), config, num_rows)
    load = cycles.Load(window.num_requests, window.context, kv_share=0.0)
    way = Way("unified", k, DraftReads(speculation.ratio, speculation.min_budget))
    return 1e3 * costs.step_seconds(load, way)


def graph_executor(llm: LLM) -> GraphExecutor:
    """What runs its steps."""
    executor = llm.executor
    assert isinstance(executor, GraphExecutor), "steps run op by op: expected CUDA kernels"
    return executor
