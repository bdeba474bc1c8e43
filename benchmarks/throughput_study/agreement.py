"""Forced agreement: a random model's drafts agree with it as often as is asked, and nothing else changes.

Only what the accept comparison looks at is replaced, the most likely token of each verified row: every kernel runs,
reads and writes what it would. For greedy requests.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import import_module

import torch
from torch import Tensor

from sparsespec.plugins.accept_drafts.inputs import RESULT_FIELDS, AcceptDraftsInputs
from sparsespec.plugins.phase import Phase
from sparsespec.plugins.sample_rows.inputs import RowStatistics, SampleRowsInputs
from sparsespec.plugins.step_rows.inputs import StepRowsInputs
from sparsespec.runtime.device.step_ops import StepOps


@dataclass(frozen=True)
class ForcedAgreement:
    """step_ops.StepOps whose verifications accept as many drafts as `mean` says, on average over positions."""

    inner: StepOps
    mean: Tensor  # () fp32 on the device, 0 to k; may change between steps

    def step_rows(self, inputs: StepRowsInputs[Tensor]) -> None:
        """See StepOps."""
        self.inner.step_rows(inputs)

    def sample_rows(self, inputs: SampleRowsInputs[Tensor]) -> RowStatistics[Tensor]:
        """See StepOps."""
        return self.inner.sample_rows(inputs)

    def accept_drafts(self, inputs: AcceptDraftsInputs[Tensor]) -> None:
        """See StepOps. On a GPU row_token is overwritten, which is this step's own."""
        if inputs.row_token.is_cuda:
            overwrite_tokens(inputs, self.mean)
            self.inner.accept_drafts(inputs)
        else:
            self.inner.accept_drafts(replace(inputs, row_token=agreeing_tokens(inputs, self.mean)))


def overwrite_tokens(inputs: AcceptDraftsInputs[Tensor], mean: Tensor) -> None:
    """inputs.row_token becomes what `agreeing_tokens` gives, by a kernel."""
    num_drafts = inputs.results.shape[1] - len(RESULT_FIELDS) - 1
    import_module("agreement_kernel").agree[(len(inputs.phase),)](
        inputs.row_token,
        inputs.phase,
        inputs.kv_len,
        inputs.logit_start,
        inputs.token_ids,
        mean,
        inputs.token_ids.shape[1],
        inputs.logits.shape[1],
        VERIFY=int(Phase.VERIFY),
        NUM_DRAFTS=num_drafts,
        WIDTH=1 << (num_drafts - 1).bit_length(),
    )


def agreeing_tokens(inputs: AcceptDraftsInputs[Tensor], mean: Tensor) -> Tensor:
    """row_token, of which verified rows before the wanted count name their drafts, and the row after it another one."""
    num_drafts = inputs.results.shape[1] - len(RESULT_FIELDS) - 1
    index = torch.arange(num_drafts, device=mean.device)
    wanted = wanted_counts(inputs.kv_len, mean)[:, None]
    position = inputs.kv_len[:, None].long() + 1 + index
    drafts = inputs.token_ids.gather(1, position.clamp(max=inputs.token_ids.shape[1] - 1))
    tokens = torch.where(index < wanted, drafts, (drafts + 1) % inputs.logits.shape[1]).int()
    num_logits = (inputs.logit_start[1:] - inputs.logit_start[:-1])[:, None]  # a block may have fewer drafts
    changed = (inputs.phase == Phase.VERIFY)[:, None] & (index <= wanted) & (index < num_logits)
    nowhere = len(inputs.row_token)
    place = torch.where(changed, inputs.logit_start[:-1, None] + index, nowhere)
    longer = torch.cat((inputs.row_token, inputs.row_token.new_zeros(1)))
    return longer.scatter(0, place.flatten().long(), tokens.flatten())[:nowhere]


def wanted_counts(kv_len: Tensor, mean: Tensor) -> Tensor:
    """[B] whole numbers around `mean`, which they have on average: who gets one more depends on the position."""
    whole = mean.floor()
    dice = (kv_len.long() * 2654435761 % 2**32).double() / 2**32
    return (whole + (dice < mean - whole)).int()
