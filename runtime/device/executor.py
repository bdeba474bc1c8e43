"""What runs a step. The runtime knows only this; torch and TensorRT implement it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic, Protocol, TypeVar

from sparsespec.runtime.results import SlotResult
from sparsespec.runtime.scheduled_step import ScheduledStep

BatchT = TypeVar("BatchT")
LogitsT = TypeVar("LogitsT")


class PendingResults(Protocol):
    """Results on their way to the host."""

    @property
    def step(self) -> ScheduledStep:
        """The step they belong to."""

    def wait(self) -> Mapping[int, SlotResult]:
        """Block until they are here; by slot."""


class Executor(Protocol, Generic[BatchT, LogitsT]):
    """The three device verbs of a step, in order. None of them needs a value from the device to go on.

    A GPU executor must also not make the host wait in passing, say by copies from pageable memory.
    """

    def prepare(self, step: ScheduledStep) -> BatchT:
        """Bring the step's metadata to the device."""

    def execute(self, batch: BatchT) -> LogitsT:
        """Run the decoder."""

    def sample(self, batch: BatchT, logits: LogitsT) -> PendingResults:
        """Draw drafts, accept and commit blocks, select pillars."""
