"""What `sparsespec doctor` says of GPUs, plugins, their host and TensorRT: here, missing and broken."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from built_plugins import built
from fake_machine import use_module, write_build_info
from made_fatbin import CUBIN, PTX, Entry, made_library
from sparsespec.plugins.library import plugin_host_path, plugin_library_path
from sparsespec.runtime.doctor import gpu_probes
from sparsespec.runtime.doctor.findings import State, found
from sparsespec.runtime.doctor.gpus import Gpu, NoGpuError, visible_gpus

H100 = Gpu(0, "NVIDIA H100", (9, 0), 80 * 2**30, 79 * 2**30)
B200 = Gpu(1, "NVIDIA B200", (10, 0), 180 * 2**30, None)


@pytest.fixture
def chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in which alone the plugins are looked for."""
    folder = tmp_path / "plugins"
    folder.mkdir()
    monkeypatch.setenv("SPARSESPEC_PLUGIN_DIR", str(folder))
    return folder


def use_gpus(monkeypatch: pytest.MonkeyPatch, *gpus: Gpu) -> None:
    def visible() -> tuple[Gpu, ...]:
        if not gpus:
            raise NoGpuError("PyTorch finds no GPU")
        return gpus

    monkeypatch.setattr(gpu_probes, "visible_gpus", visible)


def test_gpus_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    def memory(index: int) -> tuple[int, int]:
        if index == 1:
            raise RuntimeError("out of memory")
        return H100.free_bytes or 0, H100.total_bytes

    def properties(index: int) -> object:
        gpu = (H100, B200)[index]
        major, minor = gpu.capability
        return SimpleNamespace(name=gpu.name, major=major, minor=minor, total_memory=gpu.total_bytes)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    monkeypatch.setattr(torch.cuda, "mem_get_info", memory)
    assert visible_gpus() == (H100, B200)


@pytest.mark.parametrize("error", [RuntimeError("The driver is too old\nsecond line"), None])
def test_why_torch_has_no_gpu(monkeypatch: pytest.MonkeyPatch, error: Exception | None) -> None:
    def init() -> None:
        if error is not None:
            raise error

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", init)
    finding = gpu_probes.probe_gpus()
    expected = "PyTorch finds no GPU" if error is None else "PyTorch: The driver is too old"
    assert (finding.state, finding.details) == ("missing", (expected,))
    assert "on the CPU" in finding.cost


@pytest.mark.usefixtures("chosen")
def test_gpus_without_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    use_gpus(monkeypatch, H100, B200)
    finding = gpu_probes.probe_gpus()
    assert (finding.state, finding.cost) == ("found", "")
    assert finding.details[0] == "0: NVIDIA H100, compute capability 9.0, 80.0 GiB, 79.0 GiB free"
    assert finding.details[1].endswith("180.0 GiB, free memory unknown")


@pytest.mark.parametrize(
    ("programs", "state", "served", "architectures"),
    [
        ([Entry(CUBIN, 90), Entry(PTX, 80)], "found", ["sm_90", "PTX of compute_80"], None),
        ([Entry(CUBIN, 90)], "found", ["sm_90", "none"], "100"),
        ([Entry(CUBIN, 120)], "unsuitable", ["none", "none"], "90;100"),
    ],
)
def test_gpus_that_the_plugins_serve(
    monkeypatch: pytest.MonkeyPatch,
    chosen: Path,
    programs: list[Entry],
    state: State,
    served: list[str],
    architectures: str | None,
) -> None:
    (chosen / "libsparsespec_plugins.so").write_bytes(made_library(programs))
    use_gpus(monkeypatch, H100, B200)
    finding = gpu_probes.probe_gpus()
    assert finding.state == state
    assert [line.partition("; plugins: ")[2] for line in finding.details] == served
    assert bool(finding.cost) == (architectures is not None)
    if architectures is not None:
        assert f"SPARSESPEC_CUDA_ARCHITECTURES={architectures} added" in finding.cost


def test_a_gpu_that_no_build_serves(monkeypatch: pytest.MonkeyPatch, chosen: Path) -> None:
    (chosen / "libsparsespec_plugins.so").write_bytes(made_library([Entry(PTX, 80)]))
    use_gpus(monkeypatch, Gpu(0, "NVIDIA T4", (7, 5), 2**34, 2**34))
    finding = gpu_probes.probe_gpus()
    assert finding.state == "unsuitable"
    assert "the plugins need compute capability 8.0 or newer" in finding.cost


def test_plugins_that_were_not_built(chosen: Path) -> None:
    write_build_info(chosen, "nvcc: install it")
    for finding in (gpu_probes.probe_plugin_library(), gpu_probes.probe_plugin_host()):
        assert finding.state == "missing"
        assert "- nvcc: install it" in finding.details
        assert "--attention reference" in finding.cost


def test_plugins_without_a_host(chosen: Path) -> None:
    write_build_info(chosen)
    (chosen / "libsparsespec_plugins.so").write_bytes(made_library([Entry(CUBIN, 90)]))
    finding = gpu_probes.probe_plugin_library()
    assert finding.state == "found"
    assert finding.details[1] == "compiled with CUDA 13.0.88 and TensorRT 10.14.1's headers (system) for 90a-real"
    assert finding.details[2] == "programs: sm_90"


def test_plugins_that_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "libsparsespec_plugin_host.so").symlink_to(built(plugin_host_path))
    monkeypatch.setenv("SPARSESPEC_PLUGIN_DIR", str(tmp_path))
    (tmp_path / "libsparsespec_plugins.so").write_bytes(made_library([Entry(CUBIN, 90)]))
    (tmp_path / "build_info.json").write_text("[]")
    finding = gpu_probes.probe_plugin_library()
    assert finding.state == "unsuitable"
    assert finding.details[1].startswith("how it was compiled is unknown")
    assert "cannot open the plugin library" in finding.details[3]


def test_files_that_are_no_libraries(chosen: Path) -> None:
    for name in ("libsparsespec_plugins.so", "libsparsespec_plugin_host.so"):
        (chosen / name).write_text("no library")
    for finding in (gpu_probes.probe_plugin_library(), gpu_probes.probe_plugin_host()):
        assert finding.state == "unsuitable"
        assert "expected" in finding.details[0]


def test_the_compiled_plugins() -> None:
    path = built(plugin_library_path)
    library, host = gpu_probes.probe_plugin_library(), gpu_probes.probe_plugin_host()
    assert (library.state, library.details[0], library.cost) == ("found", str(path), "")
    assert library.details[2] not in ("programs: none", "programs: ")
    assert "PillarAttention" in library.details[3]
    assert host == found("plugin host", str(plugin_host_path()))


@pytest.mark.parametrize(
    ("version", "headers", "state", "cost"),
    [
        ("11.4.0.106", "11.1.0", "found", ""),
        ("11.4.0.106", "10.14.1", "found", "goes to standard error"),
        ("10.3.0", "10.14.1", "found", ""),
        ("9.0.1", "10.14.1", "unsuitable", "--backend tensorrt"),
    ],
)
def test_tensorrt(
    monkeypatch: pytest.MonkeyPatch, chosen: Path, version: str, headers: str, state: State, cost: str
) -> None:
    write_build_info(chosen, tensorrt=headers)
    use_gpus(monkeypatch, H100)
    use_module(monkeypatch, "tensorrt", __version__=version)
    finding = gpu_probes.probe_tensorrt()
    assert finding.state == state
    assert version in finding.details[0]
    assert cost in finding.cost
    assert bool(cost) == bool(finding.cost)


@pytest.mark.usefixtures("chosen")
def test_tensorrt_without_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    use_gpus(monkeypatch)
    use_module(monkeypatch, "tensorrt", __version__="11.4.0")
    assert gpu_probes.probe_tensorrt() == found("TensorRT", "11.4.0")


@pytest.mark.usefixtures("chosen")
def test_tensorrt_older_than_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    use_module(monkeypatch, "tensorrt", __version__="10.7.0")
    use_gpus(monkeypatch, H100)
    assert gpu_probes.probe_tensorrt().state == "found"
    use_gpus(monkeypatch, B200)
    finding = gpu_probes.probe_tensorrt()
    assert finding.state == "unsuitable"
    assert "10.8 or newer" in finding.details[0]


def test_no_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert gpu_probes.probe_tensorrt().state == "missing"
    use_module(monkeypatch, "tensorrt")
    finding = gpu_probes.probe_tensorrt()
    assert finding.state == "unsuitable"
    assert "another module called tensorrt" in finding.details[0]


def test_tensorrt_that_does_not_import(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "tensorrt.py").write_text("raise ImportError('libnvinfer.so.11: cannot open shared object file')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    finding = gpu_probes.probe_tensorrt()
    assert finding.state == "unsuitable"
    assert "libnvinfer.so.11" in finding.details[0]
