"""The servers that are measured, with one face."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.request import urlopen

from serving_study.clients import OpenAIStreams, StreamingClient
from serving_study.server_process import ServerExit, ServerProcess, running_server_process


@dataclass(frozen=True)
class BatchCount:
    """Steps so far, and the answers that they brought on, all together."""

    num_steps: float
    num_answers: float

    def mean_since(self, before: BatchCount) -> float:
        """Answers in a step."""
        return (self.num_answers - before.num_answers) / (self.num_steps - before.num_steps)


class Server(Protocol):
    """One that listens."""

    def client(self) -> StreamingClient:
        """A client for any number of streams; made in the event loop that uses it."""

    def batch_count(self) -> BatchCount:
        """By the server's metrics."""

    def send(self, number: signal.Signals) -> None:
        """A signal."""

    def wait(self) -> ServerExit:
        """For its end."""


class StartServer(Protocol):
    """How a server is started; it is killed at the block's end if it still runs."""

    def __call__(self, engine_dir: Path, options: Mapping[str, str]) -> AbstractContextManager[Server]:
        """options: fields of SpeculationConfig, RuntimeConfig and ServiceConfig, by name."""


@dataclass(frozen=True)
class OpenAIServer:
    """`sparsespec-serve`."""

    process: ServerProcess
    model: str

    def client(self) -> StreamingClient:
        """See Server."""
        return OpenAIStreams(self.process.url, self.model)

    def batch_count(self) -> BatchCount:
        """See Server."""
        with urlopen(f"{self.process.url}/metrics") as page:
            return read_batch_count(page.read().decode())

    def send(self, number: signal.Signals) -> None:
        """See Server."""
        self.process.send(number)

    def wait(self) -> ServerExit:
        """See Server."""
        return self.process.wait()


@contextmanager
def openai_server(engine_dir: Path, options: Mapping[str, str]) -> Iterator[Server]:
    """See StartServer."""
    flags = [word for name, value in options.items() for word in (f"--{name}", value)]
    with running_server_process(engine_dir, flags) as process:
        yield OpenAIServer(process, engine_dir.resolve().name)


def read_batch_count(page: str) -> BatchCount:
    """Of a page of Prometheus metrics. Raises ValueError where it has none."""
    found = {
        name: re.search(rf"^sparsespec_batch_size_{name}(?:{{.*}})? (\S+)$", page, re.MULTILINE) for name in _PARTS
    }
    values = [float(match.group(1)) for match in found.values() if match]
    if len(values) != len(_PARTS):
        raise ValueError(f"expected sparsespec_batch_size in the metrics, found {page[:200]!r}")
    return BatchCount(*values)


_PARTS = ("count", "sum")
