"""Plugins without kernels: each takes its inputs by their places in docs/plugins.md and hands them to the reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial

import torch
from torch import Tensor

from sparsespec.plugins.accept_drafts.inputs import AcceptDraftsInputs
from sparsespec.plugins.add_rms_norm.reference import add_rms_norm
from sparsespec.plugins.pillar_attention.inputs import (
    AttentionInputs,
    LayerInputs,
    PillarAttentionParams,
    QkNorm,
    StepInputs,
)
from sparsespec.plugins.pillar_attention.reference import pillar_attention
from sparsespec.plugins.pillar_select.inputs import SelectInputs
from sparsespec.plugins.pillar_select.reference import pillar_select
from sparsespec.plugins.sample_rows.inputs import SampleRowsInputs
from sparsespec.plugins.silu_mul.reference import silu_mul
from sparsespec.plugins.step_rows.inputs import StepRowsInputs
from sparsespec.runtime.device.step_reference import ReferenceStepOps

Fields = Mapping[str, int | float | str]
PLAN_MARK = 1234
_STEP_OPS = ("StepRows", "SampleRows", "AcceptDrafts")


@dataclass
class FakeLibrary:
    """Remembers what was made and what was run."""

    created: list[tuple[str, Fields]] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)
    planned: list[Tensor] = field(default_factory=list)  # what the last plan was made from

    def create(self, name: str, fields: Fields) -> FakePlugin:
        self.created.append((name, fields))
        return FakePlugin(self, name, fields)


@dataclass(frozen=True)
class FakePlugin:
    """Refuses what a plugin would."""

    library: FakeLibrary
    name: str
    fields: Fields

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        self.library.runs.append(self.name)
        for place, tensor in enumerate(inputs):
            _expect(tensor.is_contiguous(), f"{self.name}: input {place} is not contiguous")
            may_be_empty = self.name in ("AddRmsNorm", "SiluMul", *_STEP_OPS)
            _expect(may_be_empty or tensor.numel() > 0, f"{self.name}: input {place} is empty")
        return self._runs()[self.name](inputs)

    def _runs(self) -> Mapping[str, Callable[[Sequence[Tensor]], list[Tensor]]]:
        return {
            "PillarPlan": self._plan,
            "PillarAttention": self._attention,
            "PillarSelect": self._select,
            "AddRmsNorm": self._add_rms_norm,
            "SiluMul": self._silu_mul,
            **{name: partial(_run_step_op, name, self.fields) for name in _STEP_OPS},
        }

    def _plan(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        shapes = [list(tensor.shape) for tensor in inputs]
        _expect(shapes == [[len(inputs[1]) + 1], *[[len(inputs[1])]] * 8], f"PillarPlan: shapes {shapes}")
        _expect_ints(inputs)
        self.library.planned = list(inputs)
        return [torch.full((3,), PLAN_MARK, dtype=torch.int32)]

    def _attention(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        params = self._params()
        qkv, kv_pool, draft_lse, pillars, *step = inputs[:16]
        _expect(inputs[16].tolist() == [PLAN_MARK] * 3, f"PillarAttention: plan {inputs[16]}")
        lengths = zip([*inputs[4:12], inputs[13]], self.library.planned, strict=True)
        _expect(all(mine is planned for mine, planned in lengths), "PillarAttention: other lengths than the plan's")
        _expect_ints((pillars, *step[:-1]))
        rest = list(inputs[17:])
        scored = params.score_planes != "none"
        score_index, scores = (rest.pop(0), rest.pop(0)) if scored else (torch.zeros_like(step[1]), draft_lse[:0])
        kv_scale = rest.pop(0) if self.fields["kv_cache_dtype"] == "fp8" else None
        norm = QkNorm(rest.pop(0), rest.pop(0)) if self.fields["qk_norm"] else None
        _expect(not rest, f"PillarAttention: {len(inputs)} inputs")
        row_start, phase, draft_index, score_rows, kv_len, recent_start, num_staying, num_moving = step[:8]
        lookups, num_lookups, page_table, rope_table = step[8:]
        output = pillar_attention(
            params,
            AttentionInputs(
                qkv=qkv,
                qk_norm=norm,
                layer=LayerInputs(
                    kv_pool=kv_pool, draft_lse=draft_lse, pillars=pillars, scores=scores, kv_scale=kv_scale
                ),
                step=StepInputs(
                    row_start=row_start,
                    phase=phase,
                    draft_index=draft_index,
                    score_rows=score_rows,
                    score_index=score_index,
                    kv_len=kv_len,
                    recent_start=recent_start,
                    num_staying=num_staying,
                    num_moving=num_moving,
                    lookups=lookups,
                    num_lookups=num_lookups,
                    page_table=page_table,
                    rope_table=rope_table,
                ),
                plan=inputs[16],
            ),
        )
        return [output, kv_pool, draft_lse, *([scores] if scored else [])]

    def _select(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        scores, scored_slot, moving_shift, recent_start, num_staying, num_moving, pillars = inputs
        _expect_ints(inputs[1:])
        sizes = (len(scored_slot), len(moving_shift), scores.shape[1])
        _expect(sizes[0] == sizes[1] <= sizes[2], f"PillarSelect: scores of {sizes} slots")
        pillar_select(
            SelectInputs(
                scores=scores,
                scored_slot=scored_slot,
                moving_shift=moving_shift,
                recent_start=recent_start,
                num_staying=num_staying,
                num_moving=num_moving,
                pillars=pillars,
            )
        )
        return [pillars]

    def _add_rms_norm(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        hidden, delta, weight = inputs
        size = self.fields["hidden_size"]
        shapes = [list(tensor.shape) for tensor in inputs]
        _expect(1 <= len(delta) <= 4, f"AddRmsNorm: {len(delta)} parts")
        _expect(
            shapes == [[len(hidden), size], [len(delta), len(hidden), size], [size]], f"AddRmsNorm: shapes {shapes}"
        )
        total, normed = add_rms_norm(hidden, delta, weight, float(self.fields["rms_norm_eps"]))
        hidden.copy_(total)
        return [normed, hidden]

    def _silu_mul(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        (gate_up,) = inputs
        _expect(gate_up.shape[1] == 2 * int(self.fields["intermediate_size"]), f"SiluMul: {list(gate_up.shape)}")
        return [silu_mul(gate_up)]

    def _params(self) -> PillarAttentionParams:
        of_tensors = ("qk_norm", "kv_cache_dtype", "aliased_io")
        fields = {name: value for name, value in self.fields.items() if name not in of_tensors}
        return PillarAttentionParams(**fields)  # type: ignore[arg-type]


def _run_step_op(name: str, settings: Fields, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Outputs are what is updated in place, then what is new."""
    ops = ReferenceStepOps()
    if name == "StepRows":
        ops.step_rows(StepRowsInputs(*inputs))
        return list(inputs[11:])
    coupled = settings["coupling"] == "gumbel"
    if name == "SampleRows":
        found = ops.sample_rows(SampleRowsInputs(*_with_draft_probs(inputs, 10, coupled)))
        return [*inputs[10:], *(getattr(found, each.name) for each in fields(found))]
    ops.accept_drafts(AcceptDraftsInputs(*_with_draft_probs(inputs, 6, coupled)))
    return list(inputs[17 if coupled else 18 :])


def _with_draft_probs(inputs: Sequence[Tensor], place: int, coupled: bool) -> list[Tensor]:
    """None at their place where a coupled op has no such input."""
    return [*inputs[:place], *([None] if coupled else []), *inputs[place:]]  # type: ignore[list-item]


# Not `assert`: python -O would leave it out here.
def _expect(condition: bool, found: str) -> None:
    if not condition:
        raise AssertionError(found)


def _expect_ints(tensors: Sequence[Tensor]) -> None:
    types = [tensor.dtype for tensor in tensors]
    _expect(types == [torch.int32] * len(types), f"expected int32, found {types}")
