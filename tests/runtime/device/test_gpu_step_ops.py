"""The kernels around the decoder against their references, on random steps."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TypeVar

import pytest
import torch
from torch import Tensor

from plugin_cases import plugin_library
from sparsespec.runtime.device.rng import Purpose, uniform
from sparsespec.runtime.device.step_ops import PluginStepOps
from sparsespec.runtime.device.step_reference import ReferenceStepOps
from step_op_cases import StepCase, accept_inputs, random_step, sample_inputs, step_rows_inputs

pytestmark = pytest.mark.gpu

InputsT = TypeVar("InputsT")
CASES = (
    StepCase(num_slots=1, draft_len=1, vocab_size=128),
    StepCase(num_slots=7, draft_len=4, vocab_size=1000),
    StepCase(num_slots=40, draft_len=8, vocab_size=49152),
    StepCase(num_slots=9, draft_len=16, vocab_size=50257, max_lookups=1),
    StepCase(num_slots=5, draft_len=33, vocab_size=151936, max_lookups=256),
    StepCase(num_slots=12, draft_len=0, vocab_size=32000),
)
SANITIZED = 1000  # tokens of the largest vocabulary that `make test-sanitizer` looks at, by "small" in the name
every_case = pytest.mark.parametrize(
    "case", CASES, ids=lambda case: f"small {case}" if case.vocab_size <= SANITIZED else str(case)
)


def copied(inputs: InputsT) -> InputsT:
    """With tensors of its own."""
    return replace(inputs, **{field.name: getattr(inputs, field.name).clone() for field in fields(inputs)})  # type: ignore[arg-type, type-var]


def assert_same(found: object, expected: object, but: tuple[str, ...] = ()) -> None:
    for field in fields(expected):  # type: ignore[arg-type]
        if field.name not in but:
            ours, theirs = getattr(found, field.name), getattr(expected, field.name)
            assert torch.equal(ours, theirs), (field.name, (ours != theirs).nonzero()[:8].tolist())


@every_case
def test_step_rows(case: StepCase, fresh_seed: int) -> None:
    inputs = step_rows_inputs(random_step(case, fresh_seed, torch.device("cuda")))
    expected = copied(inputs)
    ReferenceStepOps().step_rows(expected)
    PluginStepOps(plugin_library()).step_rows(inputs)
    known = torch.arange(inputs.lookups.shape[1], device="cuda") < expected.num_lookups[:, None]
    known &= (inputs.phase == 1)[:, None]
    assert torch.equal(inputs.lookups[known], expected.lookups[known])
    assert_same(inputs, expected, but=("lookups",))


@every_case
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_sample_rows(case: StepCase, dtype: torch.dtype, fresh_seed: int) -> None:
    inputs = sample_inputs(random_step(case, fresh_seed, torch.device("cuda"), dtype))
    expected = copied(inputs)
    statistics = ReferenceStepOps().sample_rows(expected)
    found = PluginStepOps(plugin_library()).sample_rows(inputs)
    owned = inputs.logit_slot >= 0
    assert torch.equal(found.row_max[owned], statistics.row_max[owned])
    assert torch.equal(found.row_token[owned], statistics.row_token[owned])
    torch.testing.assert_close(found.row_sum[owned], statistics.row_sum[owned], rtol=1e-4, atol=0)
    torch.testing.assert_close(inputs.draft_probs, expected.draft_probs, rtol=1e-3, atol=1e-9, equal_nan=True)
    assert_drafts_drawn(inputs.token_ids, expected.token_ids, expected.draft_probs, case, fresh_seed)


def assert_drafts_drawn(found: Tensor, expected: Tensor, probabilities: Tensor, case: StepCase, seed: int) -> None:
    """Tokens equal, or next to each other where the draw falls on the border of both."""
    step = random_step(case, seed, torch.device("cuda"))
    for slot, position in (found != expected).nonzero().tolist():
        index = step.draft_index[slot].long()
        cumulative = probabilities[slot, index].double().cumsum(0)
        number = uniform(step.seed[slot], torch.tensor(position, device="cuda"), Purpose.DRAFT + index)
        low, high = sorted((int(found[slot, position]), int(expected[slot, position])))
        target = number * cumulative[-1]
        assert abs(float(cumulative[low] - target)) < 1e-4
        assert float(cumulative[high - 1] - cumulative[low]) < 1e-4


@every_case
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_accept_drafts(case: StepCase, dtype: torch.dtype, fresh_seed: int) -> None:
    """A draw on the border of two tokens moves nothing but the token: lengths are equal either way."""
    step = random_step(case, fresh_seed, torch.device("cuda"), dtype)
    statistics = ReferenceStepOps().sample_rows(sample_inputs(step))
    inputs = accept_inputs(step, statistics)
    expected = copied(inputs)
    ReferenceStepOps().accept_drafts(expected)
    PluginStepOps(plugin_library()).accept_drafts(inputs)
    assert_same(inputs, expected, but=("token_ids", "results"))
    ended = (inputs.block_rows > 0) & (inputs.phase != 1) & (inputs.phase != 3)
    assert torch.equal(inputs.results[ended][:, :6], expected.results[ended][:, :6])
    differs = (inputs.token_ids != expected.token_ids).sum()
    assert differs <= 1 + 0.02 * ended.sum(), differs


def test_drafts_are_accepted_and_rejected(fresh_seed: int) -> None:
    """Or the test above would say little."""
    step = random_step(CASES[2], fresh_seed, torch.device("cuda"))
    inputs = accept_inputs(step, ReferenceStepOps().sample_rows(sample_inputs(step)))
    PluginStepOps(plugin_library()).accept_drafts(inputs)
    counts = inputs.results[inputs.phase == 2][:, :3]
    assert (counts[:, 2] > 0).any()
    assert (counts[:, 2] < counts[:, 1]).any()
