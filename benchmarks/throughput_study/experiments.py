"""The experiments by name. Each brings its own plain decoding: every speed-up is a ratio within one run."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from throughput_study import large_model, real_model
from throughput_study.settings import Choice, Results

EXPERIMENTS: Mapping[str, Callable[[Choice], Results]] = {
    "forced": large_model.forced,
    "shapes": real_model.shapes,
    "growth": real_model.growth,
    "growth_sampled": real_model.growth_sampled,
    "fresh": real_model.fresh,
    "drafters": real_model.drafters,
    "sweep_k": real_model.sweep_k,
    "sweep_ratio": real_model.sweep_ratio,
    "sweep_batch": real_model.sweep_batch,
    "policies": real_model.policies,
    "sampling": real_model.sampling,
    "wishes": real_model.wishes,
    "sweep_context": large_model.sweep_context,
    "latency": large_model.latency,
    "peer": real_model.peer,
}
