"""Starts Triton Inference Server with the example's model repository over an engine directory.

It is found in the environment beside this one that `make test` installs; its packages are those of a real server, whose
model finds sparsespec and torch in this environment.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

MODEL = "sparsespec"
REPOSITORY = Path(__file__).parents[2] / "examples" / "triton_model_repository"
ENVIRONMENT = Path(sys.prefix) / "tritonserver"
SITE_PACKAGES = ENVIRONMENT / f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
TRITONSERVER = SITE_PACKAGES / "pytriton" / "tritonserver"
# The backend's process loads this Python as a library, of the very version that extension modules were made for.
PYTHON_LIBRARY = Path(sysconfig.get_config_var("LIBDIR"), sysconfig.get_config_var("INSTSONAME"))
MOST_START_S = 120
_DRAIN: Mapping[str, str] = {"drain_timeout_s": "20"}  # less than tritonserver's own limit, as the example has it
NO_PARAMETERS: Mapping[str, str] = {}


@dataclass(frozen=True)
class TritonServer:
    """A server that runs, and what it has written so far."""

    process: subprocess.Popen[bytes]
    http_port: int
    grpc_port: int
    metrics_port: int
    log_file: Path

    @property
    def http_url(self) -> str:
        """Of the model."""
        return f"http://localhost:{self.http_port}/v2/models/{MODEL}"

    @property
    def grpc_address(self) -> str:
        """As clients take it."""
        return f"localhost:{self.grpc_port}"

    @property
    def log(self) -> str:
        """What the server and the model wrote."""
        return self.log_file.read_text(errors="replace")

    def metrics(self) -> dict[str, float]:
        """What /metrics says of the model: values by name and labels, as written there without model and version."""
        with urllib.request.urlopen(f"http://localhost:{self.metrics_port}/metrics", timeout=10) as page:
            lines = page.read().decode().splitlines()
        found = (re.fullmatch(r"(sparsespec_\w+)\{(.*)\} (\S+)", line) for line in lines)
        return {_without_model(match[1], match[2]): float(match[3]) for match in found if match}

    def ask_to_stop(self) -> None:
        """All of the server's processes, as systemd does."""
        os.killpg(self.process.pid, signal.SIGTERM)

    def stop(self, timeout_s: float = 60) -> int:
        """Ask it to stop, and wait for its exit code."""
        self.ask_to_stop()
        return self.process.wait(timeout_s)


def has_tritonserver() -> bool:
    """Whether it is installed beside this environment, and this Python is one that it can load."""
    loadable = PYTHON_LIBRARY.suffix != ".a" and PYTHON_LIBRARY.is_file()
    return loadable and (TRITONSERVER / "bin" / "tritonserver").is_file()


@contextmanager
def triton_server(
    directory: Path, engine_dir: Path, parameters: Mapping[str, str] = NO_PARAMETERS, exit_timeout_s: int = 30
) -> Iterator[TritonServer]:
    """A server that is ready. directory: for its files; parameters: of config.pbtxt, beside engine_dir.

    Raises RuntimeError with the end of its log where it does not come up.
    """
    _write_repository(directory / "repository", {"engine_dir": str(engine_dir.resolve()), **_DRAIN, **parameters})
    _write_backend(directory / "backends" / "python")
    server = _start(directory, exit_timeout_s)
    try:
        _wait_until_ready(server)
        yield server
    finally:
        with suppress(ProcessLookupError):  # the model's process may outlive a server that has failed
            os.killpg(server.process.pid, signal.SIGKILL)
        server.process.wait()


def _start(directory: Path, exit_timeout_s: int) -> TritonServer:
    http_port, grpc_port, metrics_port = _free_ports(3)
    command = [
        str(TRITONSERVER / "bin" / "tritonserver"),
        f"--model-repository={directory / 'repository'}",
        f"--backend-directory={directory / 'backends'}",
        f"--http-port={http_port}",
        f"--grpc-port={grpc_port}",
        f"--metrics-port={metrics_port}",
        f"--exit-timeout-secs={exit_timeout_s}",
    ]
    paths = {
        "PATH": f"{ENVIRONMENT / 'bin'}:{os.environ['PATH']}",
        "LD_LIBRARY_PATH": f"{SITE_PACKAGES / 'nvidia_pytriton.libs'}:{PYTHON_LIBRARY.parent}",
    }
    log_file = directory / "tritonserver.log"
    with log_file.open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | paths, start_new_session=True)
    return TritonServer(process, http_port, grpc_port, metrics_port, log_file)


def _wait_until_ready(server: TritonServer) -> None:
    deadline = time.monotonic() + MOST_START_S
    while server.process.poll() is None and time.monotonic() < deadline:
        if _is_ready(server):
            return
        time.sleep(0.1)
    raise RuntimeError(f"tritonserver is not ready, exit code {server.process.poll()}:\n{_told(server.log)}")


def _is_ready(server: TritonServer) -> bool:
    try:
        with urllib.request.urlopen(f"{server.http_url}/ready", timeout=5):
            return True
    except OSError:  # refused, or an answer of 400
        return False


def _write_repository(directory: Path, parameters: Mapping[str, str]) -> None:
    """The example's, with other parameters."""
    shutil.copytree(REPOSITORY, directory)
    file = directory / MODEL / "config.pbtxt"
    kept = [line for line in file.read_text().splitlines() if not line.startswith("parameters")]
    added = [f'parameters {{ key: "{key}", value: {{ string_value: "{text}" }} }}' for key, text in parameters.items()]
    file.write_text("\n".join([*kept, *added, ""]))


def _write_backend(directory: Path) -> None:
    """Triton's Python backend for this Python."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    shutil.copytree(TRITONSERVER / "backends" / "python", directory)
    shutil.copy(TRITONSERVER / "python_backend_stubs" / version / "triton_python_backend_stub", directory)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("localhost", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _told(log: str) -> str:
    """Without the tables."""
    return "\n".join(line for line in log.splitlines() if not line.startswith(("|", "+")))


def _without_model(name: str, labels: str) -> str:
    others = [label for label in labels.split(",") if not label.startswith(("model=", "version="))]
    return f"{name}{{{','.join(others)}}}" if others else name
