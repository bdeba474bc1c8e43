"""What `sparsespec doctor` says of Python, PyTorch, the driver, the CUDA toolkit and MPI: here, missing and broken."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fake_machine import FakeCuda, use_driver, use_module, write_build_info
from sparsespec.runtime.doctor import machine_probes
from sparsespec.runtime.doctor.findings import State, found, missing, unsuitable
from sparsespec.runtime.doctor.gpus import NoGpuError, visible_gpus


@pytest.fixture
def chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in which alone the plugins are looked for."""
    folder = tmp_path / "plugins"
    folder.mkdir()
    monkeypatch.setenv("SPARSESPEC_PLUGIN_DIR", str(folder))
    return folder


def test_python() -> None:
    assert sys.executable in machine_probes.probe_python().details[0]


@pytest.mark.parametrize(("gpus", "cost"), [(0, ""), (1, "the GPUs are not used")])
def test_torch_without_cuda(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gpus: int, cost: str) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    use_driver(monkeypatch, FakeCuda(13000) if gpus else None, tmp_path)
    finding = machine_probes.probe_torch()
    assert (finding.state, finding.details) == ("found", (f"{torch.__version__}, a CPU build",))
    assert finding.cost.startswith(cost)
    assert bool(finding.cost) == bool(gpus)


def test_torch_for_cuda_and_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert machine_probes.probe_torch() == found("PyTorch", f"{torch.__version__}, built for CUDA 13.0")
    monkeypatch.setitem(sys.modules, "torch", None)
    assert machine_probes.probe_torch().state == "missing"
    with pytest.raises(NoGpuError, match="PyTorch cannot be imported"):
        visible_gpus()


def test_driver_that_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use_driver(monkeypatch, None, tmp_path / "absent")
    assert machine_probes.probe_driver() == missing("NVIDIA driver", "libcuda.so.1: no such file")
    use_driver(monkeypatch, None, tmp_path / "version")
    (tmp_path / "version").write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul 27 2025")
    (line,) = machine_probes.probe_driver().details
    assert line.startswith("the kernel has 580.65.06, but libcuda.so.1: no such file (in a container")


def test_driver_that_is_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, chosen: Path) -> None:
    write_build_info(chosen)
    use_driver(monkeypatch, FakeCuda(13010), tmp_path / "absent")
    expected = found("NVIDIA driver", "version unknown, for CUDA up to 13.1, 1 GPU")
    assert machine_probes.probe_driver() == expected


def test_driver_that_is_too_old(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, chosen: Path) -> None:
    write_build_info(chosen)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    use_driver(monkeypatch, FakeCuda(12040), tmp_path / "absent")
    cost = "the plugins cannot use the GPUs: a driver for CUDA 13 is needed"
    expected = unsuitable("NVIDIA driver", "version unknown, for CUDA up to 12.4", cost=cost)
    assert machine_probes.probe_driver() == expected


@pytest.mark.parametrize(
    ("failure", "text"), [(100, "no CUDA-capable device is detected (error 100)"), (999, "error 999")]
)
def test_driver_that_does_not_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, failure: int, text: str) -> None:
    use_driver(monkeypatch, FakeCuda(13000, failure), tmp_path / "absent")
    finding = machine_probes.probe_driver()
    assert (finding.state, finding.details[1]) == ("unsuitable", f"does not start: {text}")


@pytest.mark.parametrize(
    ("script", "state", "text"),
    [
        ("echo 'Cuda compilation tools, release 13.0, V13.0.88'", "found", "nvcc 13.0, "),
        ("echo 'Cuda compilation tools, release 11.8, V11.8.89'", "unsuitable", "expected 12.4 or newer"),
        ("exit 3", "unsuitable", "does not tell its version (exit code 3)"),
        ("sleep 30", "unsuitable", "does not run: "),
    ],
)
def test_nvcc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, state: State, text: str) -> None:
    nvcc = tmp_path / "nvcc"
    nvcc.write_text(f'#!/bin/sh\nexec /bin/sh -c "{script}"\n')
    nvcc.chmod(0o755)
    monkeypatch.setattr(machine_probes, "_NVCC_SECONDS", 0.5)
    monkeypatch.setenv("CUDACXX", str(nvcc))
    finding = machine_probes.probe_cuda_toolkit()
    assert finding.state == state
    assert text in finding.details[0]


def test_nvcc_that_is_named_and_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDACXX", "/nowhere/nvcc")
    finding = machine_probes.probe_cuda_toolkit()
    assert finding.state == "unsuitable"
    assert finding.details[0].startswith("/nowhere/nvcc does not run")


def test_no_nvcc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine_probes, "_find_nvcc", lambda: None)
    assert machine_probes.probe_cuda_toolkit().state == "missing"
    monkeypatch.undo()
    monkeypatch.delenv("CUDACXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "nvcc").touch(mode=0o755)
    assert machine_probes._find_nvcc() == f"{tmp_path}/bin/nvcc"


def test_mpi(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = SimpleNamespace(initialize=True)
    use_module(monkeypatch, "mpi4py", rc=settings, __version__="4.1.0")
    use_module(monkeypatch, "mpi4py.MPI", Get_library_version=lambda: "Open MPI v5.0.8\nmore\0")
    assert machine_probes.probe_mpi() == found("MPI", "mpi4py 4.1.0 over Open MPI v5.0.8")
    assert settings.initialize is False


def test_no_mpi(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    finding = machine_probes.probe_mpi()
    assert finding.state == "missing"
    assert "tp_size must be 1" in finding.cost


def test_mpi4py_without_a_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> str:
        raise RuntimeError("cannot load MPI library")

    use_module(monkeypatch, "mpi4py", rc=SimpleNamespace(), __version__="4.1.0")
    use_module(monkeypatch, "mpi4py.MPI", Get_library_version=refuse)
    finding = machine_probes.probe_mpi()
    assert (finding.state, finding.details[0][-23:]) == ("unsuitable", "cannot load MPI library")
