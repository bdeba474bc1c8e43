"""`sparsespec-serve` as a process of its own, followed by its log."""

from __future__ import annotations

import json
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LOADING_S = 600  # for an engine to be loaded; more means that something is wrong


@dataclass(frozen=True)
class ServerExit:
    """How a server ended."""

    code: int
    drained: bool  # it said that everything it had begun was answered
    log: tuple[dict[str, Any], ...]  # its lines, parsed


class ServerProcess:
    """A server that listens; `running_server_process` makes one and sees to its end."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self._lines: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._log: list[dict[str, Any]] = []
        threading.Thread(target=self._read, daemon=True).start()
        self.port = int(self.wait_for("listening")["port"])

    @property
    def url(self) -> str:
        """Of its root."""
        return f"http://127.0.0.1:{self.port}"

    def wait_for(self, event: str) -> dict[str, Any]:
        """The next line of that event. Raises RuntimeError where the server ends, or says nothing, before it."""
        while True:
            try:
                line = self._lines.get(timeout=LOADING_S)
            except queue.Empty:
                raise RuntimeError(f"expected the server to log {event!r}, found nothing for {LOADING_S} s") from None
            if line is None:
                raise RuntimeError(f"expected the server to log {event!r}, found that it ended: {self._log[-5:]}")
            if line["event"] == event:
                return line

    def send(self, number: signal.Signals) -> None:
        """A signal."""
        self.process.send_signal(number)

    def wait(self) -> ServerExit:
        """For its end."""
        code = self.process.wait(LOADING_S)
        while self._lines.get(timeout=LOADING_S) is not None:
            pass
        stopped = [line for line in self._log if line["event"] == "stopped"]
        return ServerExit(code, bool(stopped and stopped[-1]["drained"]), tuple(self._log))

    def _read(self) -> None:
        for text in self.process.stderr or ():
            line = json.loads(text) if text.startswith("{") else {"event": "text", "text": text}
            self._log.append(line)
            self._lines.put(line)
        self._lines.put(None)


@contextmanager
def running_server_process(engine_dir: Path, flags: Sequence[str] = (), port: int = 0) -> Iterator[ServerProcess]:
    """A server of an engine, on the loopback; killed at the end if it runs. Raises RuntimeError if none starts."""
    module = [sys.executable, "-m", "sparsespec.runtime.serve"]
    command = [*module, "--engine_dir", str(engine_dir), "--port", str(port), *flags]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        yield ServerProcess(process)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
