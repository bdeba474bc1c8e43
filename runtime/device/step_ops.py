"""The ops around the decoder in a step of fixed shapes: one seam for the torch references and the plugins."""

from __future__ import annotations

from dataclasses import fields
from typing import Protocol

from torch import Tensor

from sparsespec.plugins.accept_drafts.inputs import AcceptDraftsInputs
from sparsespec.plugins.plugin_signature import step_op_inputs
from sparsespec.plugins.sample_rows.inputs import RowStatistics, SampleRowsInputs
from sparsespec.plugins.step_rows.inputs import StepRowsInputs
from sparsespec.runtime.config import CouplingName
from sparsespec.runtime.device.plugin_ops import PluginSource


class StepOps(Protocol):
    """StepRows, SampleRows and AcceptDrafts, in the order of a step."""

    def step_rows(self, inputs: StepRowsInputs[Tensor]) -> None:
        """Before the decoder: which token each row is, whose logits are wanted, and what drafts look up."""

    def sample_rows(self, inputs: SampleRowsInputs[Tensor]) -> RowStatistics[Tensor]:
        """After it: rows of logits summarised, drafts drawn."""

    def accept_drafts(self, inputs: AcceptDraftsInputs[Tensor]) -> None:
        """Blocks accepted and committed, results written."""


class PluginStepOps:
    """StepOps by plugins."""

    def __init__(self, library: PluginSource, coupling: CouplingName = "rejection") -> None:
        """coupling: inputs have draft_probs under rejection only."""
        self._step_rows = library.create("StepRows", {})
        self._sample_rows = library.create("SampleRows", {"coupling": coupling})
        self._accept_drafts = library.create("AcceptDrafts", {"coupling": coupling})

    def step_rows(self, inputs: StepRowsInputs[Tensor]) -> None:
        """See StepOps."""
        self._step_rows.run(step_op_inputs(inputs))

    def sample_rows(self, inputs: SampleRowsInputs[Tensor]) -> RowStatistics[Tensor]:
        """See StepOps."""
        outputs = self._sample_rows.run(step_op_inputs(inputs))
        return RowStatistics(*outputs[-len(fields(RowStatistics)) :])

    def accept_drafts(self, inputs: AcceptDraftsInputs[Tensor]) -> None:
        """See StepOps."""
        self._accept_drafts.run(step_op_inputs(inputs))
