"""How fast PillarAttention, PillarPlan and PillarSelect run, next to what the same GPU's memory gives in the same run.

    python benchmarks/kernels.py --json kernels.json

Launches go through the plugin host into CUDA graphs. Every layer has a KV pool of its own, so that the L2 cache helps
no more than it does in a model. GB/s counts each key, value and score once; "of read" is that over the read ceiling.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from sparsespec.plugins.library import plugin_host_path, plugin_library_path
from sparsespec.plugins.phase import Phase
from sparsespec.plugins.pillar_attention.inputs import (
    AttentionInputs,
    LayerInputs,
    PillarAttentionParams,
    ScorePlanes,
    StepInputs,
)
from sparsespec.plugins.pillar_select.inputs import SelectInputs
from sparsespec.plugins.plugin_host import PluginLibrary
from sparsespec.runtime.config import SpeculationConfig
from sparsespec.runtime.device.drafter import make_drafter
from sparsespec.runtime.device.plugin_ops import PluginAttention

SPECULATION = SpeculationConfig()
DRAFT_LEN = SPECULATION.draft_len
REPEATS = 30


@dataclass(frozen=True)
class Geometry:
    """A batch of equally long requests."""

    batch: int
    context: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    num_layers: int  # of the model that it stands for: PillarSelect serves all at once
    num_pools: int  # layers that are timed
    page_size: int = 16

    @property
    def name(self) -> str:
        """In tables."""
        return f"{self.batch} x {self.context}, {self.num_heads}/{self.num_kv_heads} heads, d {self.head_dim}"

    @property
    def budget(self) -> int:
        """Tokens per KV head of a draft row."""
        return SPECULATION.budget(self.context)

    @property
    def positions(self) -> int:
        """Room of a slot."""
        return self.context + 2 * DRAFT_LEN


GEOMETRIES = (
    Geometry(batch=96, context=8192, num_heads=32, num_kv_heads=8, head_dim=128, num_layers=36, num_pools=3),
    Geometry(batch=512, context=4096, num_heads=9, num_kv_heads=3, head_dim=64, num_layers=30, num_pools=4),
)


@dataclass(frozen=True)
class Timing:
    """One row of the table."""

    geometry: str
    what: str
    ms: float
    gigabytes_per_s: float
    of_read: float


@dataclass(frozen=True)
class Mix:
    """Which phase each slot of a step has, and whether verifications are scored."""

    name: str
    phases: tuple[Phase, ...]
    score_planes: ScorePlanes = "none"


def mixes(batch: int) -> tuple[Mix, ...]:
    """The steps to time. Mixed is the unified schedule: one request in k + 1 verifies."""
    share = tuple(Phase.VERIFY if slot % (DRAFT_LEN + 1) == 0 else Phase.DRAFT for slot in range(batch))
    return (
        Mix("draft", (Phase.DRAFT,) * batch),
        Mix("verify", (Phase.VERIFY,) * batch),
        Mix("verify with scores", (Phase.VERIFY,) * batch, "diagonal"),
        Mix("mixed", share, "diagonal"),
    )


def timed(work: Callable[[], object]) -> float:
    """Median milliseconds of a captured replay."""
    work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    times = []
    for _ in range(REPEATS + 3):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(float(start.elapsed_time(end)))
    return median(times[3:])


def read_ceiling() -> float:
    """GB/s of a large read by a kernel that does little else."""
    source = torch.randn(2**30, device="cuda")
    read = timed(lambda: torch.amax(source.view(1024, -1), dim=1))
    return source.numel() * source.element_size() / read / 1e6


def step_inputs(geometry: Geometry, mix: Mix) -> StepInputs[Tensor]:
    """A step halfway through the drafts, on torch's default device. The last block's tokens are recent too."""
    verify, draft = (torch.tensor([phase == kind for phase in mix.phases]) for kind in (Phase.VERIFY, Phase.DRAFT))
    rows = verify * (DRAFT_LEN + 1) + draft * 1
    batch, pages = geometry.batch, -(-geometry.positions // geometry.page_size)
    kv_len = torch.full((batch,), geometry.context)
    split = make_drafter(SPECULATION).split(torch.full((batch,), geometry.budget))
    return StepInputs(
        row_start=torch.cat((torch.zeros(1), rows.cumsum(0))).int(),
        phase=torch.tensor([int(phase) for phase in mix.phases], dtype=torch.int32),
        draft_index=(draft * (DRAFT_LEN // 2)).int(),
        score_rows=(verify * rows * (mix.score_planes != "none")).int(),
        score_index=(verify.cumsum(0) - 1).clamp(min=0).int(),
        kv_len=kv_len.int(),
        recent_start=(kv_len - DRAFT_LEN - split.recent).int(),
        num_staying=split.staying.int(),
        num_moving=split.moving.int(),
        lookups=torch.randint(0, geometry.context // 2, (batch, SPECULATION.max_lookups)).int(),
        num_lookups=split.lookups.int(),
        page_table=torch.randperm(batch * pages).view(batch, pages).int(),
        rope_table=torch.randn(geometry.positions, geometry.head_dim),
    )


def step_on_gpu(geometry: Geometry, mix: Mix) -> StepInputs[Tensor]:
    """As step_inputs."""
    with torch.device("cuda"):
        return step_inputs(geometry, mix)


def layer_inputs(geometry: Geometry, step: StepInputs[Tensor], pool: Tensor) -> LayerInputs[Tensor]:
    """Random pillars, as far from each other as pillars are."""
    batch, heads = geometry.batch, geometry.num_kv_heads
    staying, moving = int(step.num_staying[0]), int(step.num_moving[0])
    order = torch.rand(batch, heads, int(step.recent_start[0]) - DRAFT_LEN, device="cuda").argsort(dim=-1)
    chosen = (order[..., :staying], order[..., staying : staying + moving])
    pillars = torch.cat([part.sort(dim=-1).values for part in chosen], dim=-1)
    scored = max(1, int((step.score_rows > 0).sum()))
    return LayerInputs(
        kv_pool=pool,
        draft_lse=torch.full((batch, DRAFT_LEN, geometry.num_heads), 9.0, device="cuda"),
        pillars=pillars.int().contiguous(),
        scores=torch.zeros(scored, 2, heads, geometry.positions, dtype=torch.float16, device="cuda"),
    )


def kv_bytes(geometry: Geometry, mix: Mix) -> int:
    """Keys and values that one layer's rows read, and the scores they write."""
    draft = geometry.budget + DRAFT_LEN + DRAFT_LEN // 2 + 1
    verify = geometry.context + DRAFT_LEN + 1
    tokens = sum(draft if phase == Phase.DRAFT else verify for phase in mix.phases)
    scored = 0 if mix.score_planes == "none" else sum(verify for phase in mix.phases if phase == Phase.VERIFY)
    return geometry.num_kv_heads * (tokens * 2 * geometry.head_dim * 2 + scored * 2 * 2)


def time_attention(ops: PluginAttention, geometry: Geometry, mix: Mix, pools: list[Tensor]) -> float:
    """Milliseconds of one layer."""
    params = PillarAttentionParams(
        num_heads=geometry.num_heads,
        num_kv_heads=geometry.num_kv_heads,
        head_dim=geometry.head_dim,
        page_size=geometry.page_size,
        score_planes=mix.score_planes,
    )
    step = step_on_gpu(geometry, mix)
    width = (geometry.num_heads + 2 * geometry.num_kv_heads) * geometry.head_dim
    qkv = torch.randn(int(step.row_start[-1]), width, device="cuda").bfloat16()
    plan = ops.plan(params, step)
    layers = [AttentionInputs(qkv, None, layer_inputs(geometry, step, pool), step, plan) for pool in pools]

    def work() -> None:
        for layer in layers:
            ops.attention(params, layer)

    return timed(work) / len(layers)


def time_plan(ops: PluginAttention, geometry: Geometry) -> float:
    """Milliseconds of the plan of a mixed step, one for all layers."""
    params = PillarAttentionParams(geometry.num_heads, geometry.num_kv_heads, geometry.head_dim, geometry.page_size)
    step = step_on_gpu(geometry, mixes(geometry.batch)[-1])
    return timed(lambda: ops.plan(params, step))


def time_select(ops: PluginAttention, geometry: Geometry, dtype: torch.dtype) -> tuple[float, int]:
    """Milliseconds of a launch for all layers and the slots that verify in a mixed step; the bytes of their scores."""
    step = step_on_gpu(geometry, mixes(geometry.batch)[-1])
    slots = (step.score_rows > 0).nonzero().flatten().int()
    shape = (geometry.num_layers, len(slots), 2, geometry.num_kv_heads, geometry.positions)
    scores = (torch.randn(shape, device="cuda") * 3 - 8).exp().to(dtype)
    width = int(step.num_staying[0] + step.num_moving[0])
    inputs = SelectInputs(
        scores=scores,
        scored_slot=slots,
        moving_shift=torch.full_like(slots, DRAFT_LEN - 1),  # as after a block of which all drafts but two stand
        recent_start=step.recent_start,
        num_staying=step.num_staying,
        num_moving=step.num_moving,
        pillars=slots.new_zeros(geometry.num_layers, geometry.batch, geometry.num_kv_heads, width),
    )
    return timed(lambda: ops.select(inputs)), scores.numel() * scores.element_size()


def measure(ops: PluginAttention, geometry: Geometry, read: float) -> list[Timing]:
    """All rows of one geometry."""

    def timing(what: str, ms: float, size: int) -> Timing:
        return Timing(geometry.name, what, ms, size / ms / 1e6, size / ms / 1e6 / read)

    pages = geometry.batch * -(-geometry.positions // geometry.page_size)
    shape = (pages, 2, geometry.num_kv_heads, geometry.page_size, geometry.head_dim)
    pools = [torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(geometry.num_pools)]
    attention = [
        timing(mix.name, time_attention(ops, geometry, mix, pools), kv_bytes(geometry, mix))
        for mix in mixes(geometry.batch)
    ]
    select = [
        timing(f"select, {geometry.num_layers} layers, {dtype}", *time_select(ops, geometry, dtype))
        for dtype in (torch.float16, torch.float32)
    ]
    return [*attention, timing("plan", time_plan(ops, geometry), 0), *select]


def line(row: Timing) -> str:
    """Of the table."""
    speed = f"{row.gigabytes_per_s:6.0f} GB/s {row.of_read:5.2f} of read"
    return f"{row.geometry:36} {row.what:36} {row.ms:8.4f} ms {speed}"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write everything that is printed here too")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    read = read_ceiling()
    ops = PluginAttention(PluginLibrary(plugin_library_path(), plugin_host_path()))
    print(f"{torch.cuda.get_device_name()}: read {read:.0f} GB/s")
    timings = [row for geometry in GEOMETRIES for row in measure(ops, geometry, read)]
    print("\n".join(line(row) for row in timings))
    if arguments.json:
        report = {
            "device": torch.cuda.get_device_name(),
            "torch": torch.__version__,
            "read_gigabytes_per_s": read,
            "timings": [asdict(row) for row in timings],
        }
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
