"""What TensorRT is doing while it builds, as progress bars."""

from __future__ import annotations

from rich.progress import Progress, TaskID


class BuildProgress:
    """The methods of IProgressMonitor over a rich.progress.Progress. TensorRT may call them from any of its threads."""

    def __init__(self, progress: Progress, title: str) -> None:
        """title: of phases that are part of no other."""
        self._progress = progress
        self._title = title
        self._tasks: dict[str, TaskID] = {}
        self._cancelled = False

    def cancel(self) -> None:
        """Make TensorRT give the build up at its next step."""
        self._cancelled = True

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        """See IProgressMonitor."""
        indent = "  " if parent_phase else f"{self._title}: "
        self._tasks[phase_name] = self._progress.add_task(f"{indent}{phase_name}", total=num_steps)

    def step_complete(self, phase_name: str, step: int) -> bool:
        """See IProgressMonitor. False ends the build."""
        if phase_name in self._tasks:
            self._progress.update(self._tasks[phase_name], completed=step + 1)
        return not self._cancelled

    def phase_finish(self, phase_name: str) -> None:
        """See IProgressMonitor. Called as well where a phase ends before its last step."""
        if phase_name in self._tasks:
            self._progress.remove_task(self._tasks.pop(phase_name))
