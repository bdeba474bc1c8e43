"""SampleRows and AcceptDrafts as StepOps on the CPU: the kernels' own sources, every thread by turns."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsespec.plugins.accept_drafts.inputs import RESULT_FIELDS, AcceptDraftsInputs
from sparsespec.plugins.plugin_signature import step_op_inputs
from sparsespec.plugins.sample_rows.inputs import RowStatistics, SampleRowsInputs
from sparsespec.plugins.step_rows.inputs import StepRowsInputs
from sparsespec.runtime.device.step_reference import ReferenceStepOps

_DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}  # as in common/dtype.h


@dataclass(frozen=True)
class HostStepOps:
    """step_ops.StepOps. library: tests/cpp/step_ops_on_host.cpp."""

    library: ctypes.CDLL

    def step_rows(self, inputs: StepRowsInputs[Tensor]) -> None:
        """The reference's."""
        ReferenceStepOps().step_rows(inputs)

    def sample_rows(self, inputs: SampleRowsInputs[Tensor]) -> RowStatistics[Tensor]:
        """See StepOps."""
        num_logits, vocab_size = inputs.logits.shape
        draft_len = 0 if inputs.draft_probs is None else inputs.draft_probs.shape[1]
        sizes = [*inputs.token_ids.shape, draft_len, num_logits, vocab_size]
        floats = torch.zeros(3, num_logits)
        tokens = torch.zeros(2, num_logits, dtype=torch.int32)
        outputs = (floats[0], floats[1], tokens[0], floats[2], tokens[1])
        sizes += [_DTYPES[inputs.logits.dtype], int(inputs.draft_probs is None)]
        self.library.sample_rows(_ints(sizes), _pointers([*step_op_inputs(inputs), *outputs]))
        return RowStatistics(*outputs)

    def accept_drafts(self, inputs: AcceptDraftsInputs[Tensor]) -> None:
        """See StepOps."""
        num_logits, vocab_size = inputs.logits.shape
        draft_len = inputs.results.shape[1] - len(RESULT_FIELDS) - 1
        sizes = [*inputs.token_ids.shape, draft_len, num_logits, vocab_size, len(inputs.scored_slot)]
        sizes += [_DTYPES[inputs.logits.dtype], int(inputs.draft_probs is None)]
        self.library.accept_drafts(_ints(sizes), _pointers(step_op_inputs(inputs)))


def _ints(values: list[int]) -> ctypes.Array[ctypes.c_int32]:
    return (ctypes.c_int32 * len(values))(*values)


def _pointers(tensors: list[Tensor]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))
