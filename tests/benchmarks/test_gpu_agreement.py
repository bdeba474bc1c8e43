"""Forced agreement by its kernel, beside torch."""

from __future__ import annotations

import pytest
import torch

from sparsespec.runtime.device.step_reference import ReferenceStepOps
from step_op_cases import StepCase, accept_inputs, random_step, sample_inputs
from throughput_study.agreement import agreeing_tokens, overwrite_tokens

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("mean", [0.0, 2.5, 3.99, 4.0])
@pytest.mark.parametrize("num_slots", [1, 7, 40])
def test_the_kernel_writes_what_torch_does(num_slots: int, mean: float, fresh_seed: int) -> None:
    case = StepCase(num_slots=num_slots, draft_len=4, vocab_size=1000)
    step = random_step(case, fresh_seed, torch.device("cuda"))
    inputs = accept_inputs(step, ReferenceStepOps().sample_rows(sample_inputs(step)))
    wanted = torch.tensor(mean, device="cuda")
    expected = agreeing_tokens(inputs, wanted)
    overwrite_tokens(inputs, wanted)
    assert torch.equal(inputs.row_token, expected)
