"""The sources of SampleRows and AcceptDrafts on the CPU, every thread by turns, against their references."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from host_library import host_library
from sparsespec.runtime.device.step_ops import StepOps
from step_kernels_on_host import HostStepOps
from step_op_cases import NUM_CUTS, LogitKind, StepCase, random_step, with_all_cuts
from step_op_checks import check_accept_drafts, check_coupled_rows, check_sample_rows

CPU = torch.device("cpu")
SMALL = StepCase(num_slots=14, draft_len=4, vocab_size=1000)
# The last has more tokens than fit a list, of a length that is no multiple of a vector's.
CASES = (StepCase(num_slots=9, draft_len=2, vocab_size=128), SMALL, StepCase(num_slots=8, draft_len=1, vocab_size=9001))
every_dtype = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
every_kind = pytest.mark.parametrize("kind", ["spread", "tied", "equal", "zeros", "masked"])


@pytest.fixture(scope="module")
def ops(tmp_path_factory: pytest.TempPathFactory) -> StepOps:
    return HostStepOps(host_library("step_ops_on_host.cpp", tmp_path_factory.mktemp("step_ops"), "-x", "c++"))


@every_kind
@every_dtype
@pytest.mark.parametrize("case", CASES, ids=str)
def test_sample_rows(ops: StepOps, case: StepCase, dtype: torch.dtype, kind: LogitKind, fresh_seed: int) -> None:
    check_sample_rows(ops, random_step(replace(case, logits=kind), fresh_seed, CPU, dtype))


@every_kind
@pytest.mark.parametrize(("dtype", "temperature"), [(torch.bfloat16, 5.0), (torch.float32, 0.6)], ids=str)
def test_all_cuts(ops: StepOps, temperature: float, dtype: torch.dtype, kind: LogitKind, fresh_seed: int) -> None:
    """At 5, likely tokens are many, and equal ones among them."""
    step = random_step(StepCase(NUM_CUTS, 1, 500, logits=kind), fresh_seed, CPU, dtype)
    check_sample_rows(ops, with_all_cuts(step, temperature))


@every_kind
@every_dtype
def test_accept_drafts(ops: StepOps, dtype: torch.dtype, kind: LogitKind, fresh_seed: int) -> None:
    check_accept_drafts(ops, random_step(replace(SMALL, logits=kind), fresh_seed, CPU, dtype))


@every_kind
@pytest.mark.parametrize(("dtype", "temperature"), [(torch.bfloat16, 5.0), (torch.float32, 0.6)], ids=str)
def test_coupled_rows(ops: StepOps, temperature: float, dtype: torch.dtype, kind: LogitKind, fresh_seed: int) -> None:
    step = random_step(StepCase(NUM_CUTS, 1, 301, logits=kind), fresh_seed, CPU, dtype)
    check_coupled_rows(ops, step)
    check_coupled_rows(ops, with_all_cuts(step, temperature))


@every_dtype
def test_coupled_drafts(ops: StepOps, dtype: torch.dtype, fresh_seed: int) -> None:
    check_accept_drafts(ops, random_step(SMALL, fresh_seed, CPU, dtype), coupled=True)
