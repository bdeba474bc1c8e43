"""What TensorRT is doing while it builds, as progress bars."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import Progress, TaskID


class BuildProgress:
    """The methods of IProgressMonitor over a rich.progress.Progress. TensorRT may call them from any of its threads.

    An interrupt from the keyboard arrives in one of them: no exception may leave it, so it ends the build instead.
    """

    def __init__(self, progress: Progress, title: str) -> None:
        """title: of phases that are part of no other."""
        self._progress = progress
        self._title = title
        self._tasks: dict[str, TaskID] = {}
        self._interrupts: list[KeyboardInterrupt] = []

    @property
    def was_interrupted(self) -> bool:
        """Whether the user wanted the build to end."""
        return bool(self._interrupts)

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        """See IProgressMonitor."""
        with self._interrupts_kept():
            indent = "  " if parent_phase else f"{self._title}: "
            self._tasks[phase_name] = self._progress.add_task(f"{indent}{phase_name}", total=num_steps)

    def step_complete(self, phase_name: str, step: int) -> bool:
        """See IProgressMonitor. False ends the build."""
        with self._interrupts_kept():
            if phase_name in self._tasks:
                self._progress.update(self._tasks[phase_name], completed=step + 1)
        return not self._interrupts

    def phase_finish(self, phase_name: str) -> None:
        """See IProgressMonitor. Called as well where a phase ends before its last step."""
        with self._interrupts_kept():
            if phase_name in self._tasks:
                self._progress.remove_task(self._tasks.pop(phase_name))

    @contextmanager
    def _interrupts_kept(self) -> Iterator[None]:
        try:
            yield
        except KeyboardInterrupt as interrupt:
            self._interrupts.append(interrupt)
