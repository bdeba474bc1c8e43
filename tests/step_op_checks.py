"""The kernels around the decoder against their references, whoever runs them: a GPU, or the CPU thread by thread."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch
from torch import Tensor

from sparsespec.plugins.sample_rows.inputs import RowStatistics, SampleRowsInputs
from sparsespec.runtime.device.cuts import CutRules, Cuts, find_cuts
from sparsespec.runtime.device.rng import Purpose, exponentials, uniform
from sparsespec.runtime.device.step_ops import StepOps
from sparsespec.runtime.device.step_reference import ReferenceStepOps
from step_op_cases import RandomStep, accept_inputs, sample_inputs

InputsT = TypeVar("InputsT")


def copied(inputs: InputsT) -> InputsT:
    """With tensors of its own."""
    tensors = {field.name: getattr(inputs, field.name) for field in fields(inputs)}  # type: ignore[arg-type]
    return replace(inputs, **{name: None if tensor is None else tensor.clone() for name, tensor in tensors.items()})  # type: ignore[type-var]


def expect_same(found: object, expected: object, but: tuple[str, ...] = ()) -> None:
    """Tensors of two dataclasses, but for those named."""
    for field in fields(expected):  # type: ignore[arg-type]
        if field.name not in but:
            ours, theirs = getattr(found, field.name), getattr(expected, field.name)
            expect(torch.equal(ours, theirs), f"{field.name} differs at {(ours != theirs).nonzero()[:8].tolist()}")


def expect(condition: bool, found: str) -> None:
    """Not `assert`, which python -O would leave out here."""
    if not condition:
        raise AssertionError(found)


@dataclass(frozen=True)
class SampledRows:
    """What an implementation of SampleRows left, and what the reference did."""

    found: SampleRowsInputs[Tensor]
    found_statistics: RowStatistics[Tensor]
    expected: SampleRowsInputs[Tensor]
    statistics: RowStatistics[Tensor]


def check_sample_rows(ops: StepOps, step: RandomStep) -> None:
    """Statistics, cuts, distributions and drafts."""
    inputs = sample_inputs(step)
    expected = copied(inputs)
    statistics = ReferenceStepOps().sample_rows(expected)
    rows = SampledRows(inputs, ops.sample_rows(inputs), expected, statistics)
    owned = step.logit_slot >= 0
    expect(torch.equal(rows.found_statistics.row_max[owned], statistics.row_max[owned]), "row_max")
    expect(torch.equal(rows.found_statistics.row_token[owned], statistics.row_token[owned]), "row_token")
    differs = _kept_differently(rows)
    same = owned & ~differs
    torch.testing.assert_close(rows.found_statistics.row_sum[same], statistics.row_sum[same], rtol=1e-4, atol=0)
    _check_drafts(rows, step, same)


def _kept_differently(rows: SampledRows) -> Tensor:
    """[num_logits] which rows keep more or less than the reference, by one token or a share of 1e-5: top_p's border."""
    inputs, found, expected = rows.found, rows.found_statistics, rows.statistics
    owned = (inputs.logit_slot >= 0).nonzero()[:, 0]  # nothing is written for others
    logits, owner = inputs.logits[owned].float(), inputs.logit_slot[owned]
    ours = Cuts(found.row_cut_logit[owned], found.row_cut_token[owned]).keep(logits)
    theirs = Cuts(expected.row_cut_logit[owned], expected.row_cut_token[owned]).keep(logits)
    differs = (ours != theirs) & (logits > -torch.inf)  # others have no mass, kept or not
    count = differs.sum(dim=1)
    temperature = inputs.temperature[owner].clamp(min=1e-30)
    before_top_p = CutRules(temperature, inputs.min_p[owner], inputs.top_k[owner], torch.ones_like(temperature))
    weights = ((logits - expected.row_max[owned, None]) / temperature[:, None]).double().exp()
    everything = (weights * find_cuts(logits, before_top_p).keep(logits)).sum(dim=1)
    share = (weights * differs).sum(dim=1)[count > 1] / everything[count > 1]
    expect(bool((share < 1e-5).all()), f"cuts differ by {count.tolist()} tokens")
    off_border = (weights * (ours & theirs)).sum(dim=1) / everything - inputs.top_p[owner]
    expect(bool((off_border[count > 0].abs() < 1e-5).all()), f"cuts differ at {off_border[count > 0].tolist()}")
    return torch.zeros_like(inputs.logit_slot, dtype=torch.bool).index_put((owned,), count > 0)


def _check_drafts(rows: SampledRows, step: RandomStep, same: Tensor) -> None:
    """Of rows with the same cuts: distributions, and tokens, equal or next to each other on the border of a draw."""
    drafts = ((step.phase == 1)[step.logit_slot.clamp(min=0).long()] & same).nonzero()[:, 0]
    slots, positions = step.logit_slot[drafts].long(), step.logit_position[drafts].long()
    index = step.draft_index[slots].long()
    found_probs, expected_probs = rows.found.draft_probs, rows.expected.draft_probs
    if found_probs is None or expected_probs is None:
        raise AssertionError("draft_probs")
    ours, theirs = found_probs[slots, index], expected_probs[slots, index]
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-9, equal_nan=True)
    if step.draft_probs.shape[1] == 0:
        return
    written = torch.zeros(step.draft_probs.shape[:2], dtype=torch.bool, device=slots.device)
    written[
        step.logit_slot[step.logit_slot >= 0].long(), step.draft_index[step.logit_slot[step.logit_slot >= 0]].long()
    ] = True
    expect(torch.equal(found_probs[~written], step.draft_probs[~written]), "draft_probs of nobody's drafts")
    tokens, expected = rows.found.token_ids[slots, positions], rows.expected.token_ids[slots, positions]
    for row in (tokens != expected).nonzero()[:, 0].tolist():
        cumulative = theirs[row].double().cumsum(0)
        target = uniform(step.seed[slots[row]], positions[row], Purpose.DRAFT + index[row]) * cumulative[-1]
        low, high = sorted((int(tokens[row]), int(expected[row])))
        expect(abs(float(cumulative[low] - target)) < 1e-4, f"draft {row} is {low} or {high}")
        expect(float(cumulative[high - 1] - cumulative[low]) < 1e-4, f"draft {row} is {low} or {high}")


def check_coupled_rows(ops: StepOps, step: RandomStep) -> None:
    """Winners of the races, for drafts and verifications, but for races that two tokens win within rounding."""
    inputs = coupled_inputs(step)
    expected = copied(inputs)
    statistics, found = ReferenceStepOps().sample_rows(expected), ops.sample_rows(inputs)
    owned = step.logit_slot >= 0
    expect(bool((found.row_sum[owned] == 1).all()), "row_sum")
    owner = step.logit_slot.clamp(min=0).long()
    rows = owned.nonzero()[:, 0]
    for row in rows[found.row_token[rows] != statistics.row_token[rows]].tolist():
        tokens = torch.stack((found.row_token[row], statistics.row_token[row])).long()
        expect(float(step.temperature[owner[row]]) > 0, f"row {row} is greedy")
        seed, position = step.seed[owner[row], None], step.logit_position[row, None].long()
        numbers = exponentials(seed, position, step.case.vocab_size)[0, tokens]
        logits = step.logits[row, tokens].double() / step.temperature[owner[row]].double()
        apart = numbers.log() - logits
        expect(abs(float(apart[0] - apart[1])) < 1e-4, f"row {row} is {tokens.tolist()}")
    drafts = ((step.phase == 1)[owner] & owned).nonzero()[:, 0]
    drawn = inputs.token_ids[owner[drafts], step.logit_position[drafts].long()]
    expect(torch.equal(drawn, found.row_token[drafts].long()), "drafts are the winners of their rows")


def coupled_inputs(step: RandomStep) -> SampleRowsInputs[Tensor]:
    """Of copies of what the op writes."""
    return replace(sample_inputs(step), draft_probs=None)


def check_accept_drafts(ops: StepOps, step: RandomStep, coupled: bool = False) -> None:
    """A draw on the border of two tokens moves nothing but the token: lengths are equal either way."""
    statistics = ReferenceStepOps().sample_rows(coupled_inputs(step) if coupled else sample_inputs(step))
    inputs = accept_inputs(step, statistics)
    if coupled:
        inputs = replace(inputs, draft_probs=None)
    expected = copied(inputs)
    ReferenceStepOps().accept_drafts(expected)
    ops.accept_drafts(inputs)
    expect_same(inputs, expected, but=("draft_probs", "token_ids", "results"))
    ended = (inputs.block_rows > 0) & (inputs.phase != 1) & (inputs.phase != 3)
    expect(torch.equal(inputs.results[ended][:, :6], expected.results[ended][:, :6]), "results")
    differs = int((inputs.token_ids != expected.token_ids).sum())
    expect(differs <= 1 + 0.02 * int(ended.sum()), f"{differs} tokens differ")
