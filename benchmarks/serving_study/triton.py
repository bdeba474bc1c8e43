"""Triton Inference Server as one of the servers that are measured; needs the package tritonclient."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from serving_study.clients import StreamingClient
from serving_study.server_process import LOADING_S, ServerExit
from serving_study.servers import BatchCount, Server
from serving_study.triton_client import TritonStreams
from serving_study.triton_process import TritonServer, has_tritonserver, triton_server
from sparsespec.runtime.serving.triton.model import METRICS_PERIOD_S


@dataclass(frozen=True)
class Triton:
    """Triton Inference Server with the example's model."""

    server: TritonServer

    def client(self) -> StreamingClient:
        """See Server."""
        return TritonStreams(self.server.grpc_address)

    def batch_count(self) -> BatchCount:
        """See Server."""
        time.sleep(2 * METRICS_PERIOD_S)  # the model publishes what it counted from time to time
        metrics = self.server.metrics()
        return BatchCount(metrics["sparsespec_batch_size_count"], metrics["sparsespec_batch_size_sum"])

    def send(self, number: signal.Signals) -> None:
        """See Server; to all of its processes."""
        os.killpg(self.server.process.pid, number)

    def wait(self) -> ServerExit:
        """See Server."""
        code = self.server.process.wait(LOADING_S)
        lines = [json.loads(line) for line in self.server.log.splitlines() if line.startswith("{")]
        ended = [line for line in lines if line["event"] == "request_ended"]
        return ServerExit(code, all(line["outcome"] != "draining" for line in ended), tuple(lines))


@contextmanager
def triton(engine_dir: Path, options: Mapping[str, str]) -> Iterator[Server]:
    """See StartServer. Raises RuntimeError where there is no tritonserver beside this environment."""
    if not has_tritonserver():
        raise RuntimeError("expected a tritonserver beside this environment (`make test` installs it), found none")
    with TemporaryDirectory() as directory, triton_server(Path(directory), engine_dir, options) as server:
        yield Triton(server)
