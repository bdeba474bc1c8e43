"""The kernels around the decoder against their references, on random steps."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch

from plugin_cases import plugin_library
from sparsespec.runtime.device.step_ops import PluginStepOps
from sparsespec.runtime.device.step_reference import ReferenceStepOps
from step_op_cases import (
    NUM_CUTS,
    LogitKind,
    StepCase,
    accept_inputs,
    random_step,
    sample_inputs,
    step_rows_inputs,
    with_all_cuts,
)
from step_op_checks import check_accept_drafts, check_coupled_rows, check_sample_rows, copied, expect_same

pytestmark = pytest.mark.gpu

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

every_dtype = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
every_kind = pytest.mark.parametrize("kind", ["spread", "tied", "equal", "zeros", "masked"])


@every_case
def test_step_rows(case: StepCase, fresh_seed: int) -> None:
    inputs = step_rows_inputs(random_step(case, fresh_seed, torch.device("cuda")))
    expected = copied(inputs)
    ReferenceStepOps().step_rows(expected)
    PluginStepOps(plugin_library()).step_rows(inputs)
    known = torch.arange(inputs.lookups.shape[1], device="cuda") < expected.num_lookups[:, None]
    known &= (inputs.phase == 1)[:, None]
    assert torch.equal(inputs.lookups[known], expected.lookups[known])
    expect_same(inputs, expected, but=("lookups",))


@every_case
@every_dtype
def test_sample_rows(case: StepCase, dtype: torch.dtype, fresh_seed: int) -> None:
    step = random_step(case, fresh_seed, torch.device("cuda"), dtype)
    check_sample_rows(PluginStepOps(plugin_library()), step)


@every_kind
@every_dtype
@pytest.mark.parametrize("vocab_size", [128, 1000, 50257, 151936])
def test_all_cuts(vocab_size: int, dtype: torch.dtype, kind: LogitKind, fresh_seed: int) -> None:
    """At 5, likely tokens are many: at 151,936 of them, more than fit the list that cuts are looked for in."""
    step = random_step(StepCase(NUM_CUTS, 1, vocab_size, logits=kind), fresh_seed, torch.device("cuda"), dtype)
    for temperature in (0.6, 5.0):
        check_sample_rows(PluginStepOps(plugin_library()), with_all_cuts(step, temperature))


@every_case
@every_dtype
@every_kind
def test_accept_drafts(case: StepCase, dtype: torch.dtype, kind: LogitKind, fresh_seed: int) -> None:
    step = random_step(replace(case, logits=kind), fresh_seed, torch.device("cuda"), dtype)
    check_accept_drafts(PluginStepOps(plugin_library()), step)


@every_case
@every_dtype
@every_kind
def test_coupled_drafts(case: StepCase, dtype: torch.dtype, kind: LogitKind, fresh_seed: int) -> None:
    step = random_step(replace(case, logits=kind), fresh_seed, torch.device("cuda"), dtype)
    ops = PluginStepOps(plugin_library(), "gumbel")
    check_coupled_rows(ops, step)
    check_accept_drafts(ops, step, coupled=True)


@every_dtype
@pytest.mark.parametrize("vocab_size", [128, 1000, 50257, 151936])
def test_coupled_rows_with_all_cuts(vocab_size: int, dtype: torch.dtype, fresh_seed: int) -> None:
    step = random_step(StepCase(NUM_CUTS, 1, vocab_size), fresh_seed, torch.device("cuda"), dtype)
    check_coupled_rows(PluginStepOps(plugin_library(), "gumbel"), with_all_cuts(step, 2.0))


def test_a_rows_tokens_do_not_depend_on_who_shares_its_step(fresh_seed: int) -> None:
    """Statistics and drafts, bit for bit, of a step's rows and of its last half alone."""
    step = with_all_cuts(random_step(StepCase(NUM_CUTS, 1, 50257), fresh_seed, torch.device("cuda")), 1.5)
    inputs = sample_inputs(step)
    half = len(step.logit_slot) // 2
    fewer = replace(
        copied(inputs),
        logits=inputs.logits[half:].clone(),
        logit_slot=inputs.logit_slot[half:].clone(),
        logit_position=inputs.logit_position[half:].clone(),
    )
    ops = PluginStepOps(plugin_library())
    found, alone = ops.sample_rows(inputs), ops.sample_rows(fewer)
    owned = fewer.logit_slot >= 0
    for field in fields(alone):
        assert torch.equal(getattr(found, field.name)[half:][owned], getattr(alone, field.name)[owned]), field.name
    drafts = fewer.logit_slot[owned & (step.phase[fewer.logit_slot.clamp(min=0).long()] == 1)].long()
    assert torch.equal(inputs.draft_probs[drafts], fewer.draft_probs[drafts])
    assert torch.equal(inputs.token_ids[drafts], fewer.token_ids[drafts])


def test_drafts_are_accepted_and_rejected(fresh_seed: int) -> None:
    """Or the test above would say little."""
    step = random_step(CASES[2], fresh_seed, torch.device("cuda"))
    inputs = accept_inputs(step, ReferenceStepOps().sample_rows(sample_inputs(step)))
    PluginStepOps(plugin_library()).accept_drafts(inputs)
    counts = inputs.results[inputs.phase == 2][:, :3]
    assert (counts[:, 2] > 0).any()
    assert (counts[:, 2] < counts[:, 1]).any()
