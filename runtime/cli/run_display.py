"""What run.py shows while it works: answers on stdout as they come, or progress on stderr."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.status import Status
from rich.text import Text

from sparsespec.runtime.cli.decode_batch import ShowDelta
from sparsespec.runtime.outputs import OutputDelta, RequestOutput


def waiting(message: str) -> Status:
    """A spinner on stderr, gone when its context ends."""
    return Console(stderr=True).status(Text(message))


@contextmanager
def streamed() -> Iterator[ShowDelta]:
    """Print one answer's text as it comes; a spinner until then."""
    with waiting("reading the prompt") as spinner:

        def show(delta: OutputDelta) -> None:
            spinner.stop()
            print(delta.text, end="", flush=True)

        try:
            yield show
        finally:
            spinner.stop()
            print("\n")


@contextmanager
def progress_bar(description: str, num_answers: int, max_tokens: int) -> Iterator[ShowDelta]:
    """A bar on stderr over the tokens of several answers of at most max_tokens each."""
    columns = (
        TextColumn(description),
        BarColumn(),
        TextColumn("{task.completed:,.0f} of at most {task.total:,.0f} tokens"),
        TimeElapsedColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        yield _TokenBar(progress, num_answers, max_tokens).show


def print_answers(numbers: Sequence[int], outputs: Sequence[RequestOutput]) -> None:
    """Print finished answers, with headings where there are several."""
    several = sum(len(output.outputs) for output in outputs) > 1
    for number, output in zip(numbers, outputs, strict=True):
        for answer in output.outputs:
            which = f", answer {answer.index + 1}" if len(output.outputs) > 1 else ""
            heading = f"--- prompt {number}{which} ---\n" if several else ""
            print(f"{heading}{answer.text}\n")


class _TokenBar:
    def __init__(self, progress: Progress, num_answers: int, max_tokens: int) -> None:
        self._progress = progress
        self._max_tokens = max_tokens
        self._total = num_answers * max_tokens
        self._task = progress.add_task("", total=self._total)
        self._lengths: dict[tuple[int, int], int] = {}

    def show(self, delta: OutputDelta) -> None:
        """Advance; an answer that ends early leaves less to do."""
        answer = (delta.request_id, delta.index)
        self._lengths[answer] = self._lengths.get(answer, 0) + len(delta.token_ids)
        if delta.finish_reason is not None:
            self._total -= self._max_tokens - self._lengths[answer]
        self._progress.update(self._task, advance=len(delta.token_ids), total=self._total)
