"""`build_engine.py --backend tensorrt`, then `run.py`, with a fake module `tensorrt` and a fake GPU."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from rich.progress import Progress, TaskID

from fake_builder import BuildingTensorRT, Flag, Preview, Verbosity
from fake_tensorrt import VERSION
from recorded_ops import Plugin
from sparsespec.builder import build_engine
from sparsespec.builder.build_config import BuildConfig
from sparsespec.builder.engine_dir import EngineConfig, read_engine_config
from sparsespec.builder.trt import availability
from sparsespec.builder.trt.availability import Gpu, UnusableError, find_usable
from sparsespec.plugins.library import PluginsUnavailableError
from sparsespec.runtime import run
from tiny_models import tiny_llama, tiny_model_config, write_tiny_hf_checkpoint

H200 = Gpu("NVIDIA H200", (9, 0))
MODEL = tiny_model_config(num_heads=2, num_kv_heads=1, head_dim=64)
BUILD = BuildConfig(
    dtype="bfloat16", max_batch_size=3, max_seq_len=200, max_num_tokens=64, max_draft_len=4, max_budget=64
)
BUILD_FLAGS = [
    *("--max_batch_size", "3", "--max_seq_len", "200", "--max_num_tokens", "64"),
    *("--max_draft_len", "4", "--max_budget", "64"),
]
Run = Callable[..., int]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_tiny_hf_checkpoint(tmp_path / "hf", tiny_llama(MODEL).to(torch.bfloat16))


@pytest.fixture
def trt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BuildingTensorRT:
    """TensorRT, an H200 and the plugin library are here, as far as anybody can see."""
    library = tmp_path / "libsparsespec_plugins.so"
    library.write_bytes(b"")
    fake = BuildingTensorRT(config=EngineConfig(MODEL, BUILD))
    monkeypatch.setitem(sys.modules, "tensorrt", fake)  # type: ignore[arg-type]
    monkeypatch.setattr(availability, "find_gpu", lambda _device: H200)
    monkeypatch.setattr(availability, "plugin_library_path", lambda: library)
    return fake


@pytest.fixture
def build(checkpoint: Path, tmp_path: Path, trt: BuildingTensorRT) -> Run:
    """build_engine.py, and the engine directory that it makes."""
    assert trt.built == []

    def call(*flags: str) -> int:
        command = ["--checkpoint_dir", str(checkpoint), "--output_dir", str(tmp_path / "engine"), *BUILD_FLAGS, *flags]
        return build_engine.main(command)

    return call


@pytest.fixture
def decode(tmp_path: Path, trt: BuildingTensorRT) -> Run:
    """run.py on what was built."""

    def call(*flags: str) -> int:
        trt.config = read_engine_config(tmp_path / "engine")
        text = "How are keys and values kept? " * 3
        common = ["--input_text", text, "--max_output_len", "12", "--device", "cpu", "--chunk_size", "32", "--k", "3"]
        return run.main(["--engine_dir", str(tmp_path / "engine"), "--min_budget", "16", *common, *flags])

    return call


def error(capsys: pytest.CaptureFixture[str]) -> str:
    """The line that stderr ends with."""
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return captured.err[captured.err.index("error: ") :].replace("\n", " ")


def test_an_engine_directory_with_engines(build: Run, trt: BuildingTensorRT, tmp_path: Path) -> None:
    assert build("--backend", "tensorrt", "--builder_opt", "4", "--profiling_verbosity", "detailed") == 0
    directory = tmp_path / "engine"
    for kind in ("draft", "verify"):
        assert (directory / f"{kind}.engine").read_bytes() == kind.encode()
        assert json.loads((directory / f"{kind}.layers.json").read_text()) == {"Layers": [f"PillarAttention of {kind}"]}
    assert json.loads((directory / "config.json").read_text())["tensorrt"] == {
        "version": VERSION,
        "gpu": "NVIDIA H200",
        "compute_capability": "9.0",
        "score_planes": "diagonal",
        "score_normalizer": "draft",
        "aliased_io": True,
        "opt_batch_size": None,
        "builder_opt": 4,
        "profiling_verbosity": "detailed",
    }
    assert trt.loaded_libraries == [str(tmp_path / "libsparsespec_plugins.so")]
    assert [built.recording.name for built in trt.built] == ["sparsespec draft", "sparsespec verify"]


def test_what_the_builder_is_told(build: Run, trt: BuildingTensorRT) -> None:
    assert build("--backend", "tensorrt", "--builder_opt", "2", "--profiling_verbosity", "none") == 0
    draft, verify = trt.built
    for built in (draft, verify):
        config = built.config
        assert (config.builder_optimization_level, config.profiling_verbosity) == (2, Verbosity.NONE)
        assert config.previewed == [Preview.ALIASED_PLUGIN_IO_10_03]
        assert config.cleared == [Flag.TF32]
        assert config.max_aux_streams == 0
        dynamic = [
            each.name for number in built.recording.inputs if -1 in (each := built.recording.tensors[number]).type.shape
        ]
        assert all(sorted(profile.shapes) == sorted(dynamic) for profile in built.profiles)
    assert [profile.shapes["token_ids"] for profile in draft.profiles] == [((1,), (3,), (3,))]
    assert [profile.shapes["token_ids"][2] for profile in verify.profiles] == [(15,), (64,)]


def test_profiles_are_tuned_for_a_usual_batch(build: Run, decode: Run, trt: BuildingTensorRT) -> None:
    assert build("--backend", "tensorrt", "--opt_batch_size", "2") == 0
    draft, verify = trt.built
    assert [profile.shapes["token_ids"] for profile in draft.profiles] == [((1,), (2,), (3,))]
    assert [profile.shapes["token_ids"][1] for profile in verify.profiles] == [(4,), (64,)]
    assert [profile.shapes["kv_len"] for profile in verify.profiles] == [((1,), (2,), (3,))] * 2
    assert decode("--backend", "tensorrt") == 0


def test_the_timing_cache_is_read_and_written(build: Run, tmp_path: Path) -> None:
    cache = tmp_path / "timing.cache"
    assert build("--backend", "tensorrt", "--timing_cache", str(cache)) == 0
    assert cache.read_bytes() == b"timed timed "  # by each of the two engines
    assert build("--backend", "tensorrt", "--timing_cache", str(cache), "--force") == 0
    assert cache.read_bytes() == b"timed " * 4


def test_memory_is_told_before_anything_is_built(
    build: Run, trt: BuildingTensorRT, capsys: pytest.CaptureFixture[str]
) -> None:
    trt.builder_faults.nothing_built = True
    assert build("--backend", "tensorrt") == 2
    told = capsys.readouterr().err
    for name in ("weights", "kv_cache", "pillars", "scores", "logits", "draft_probs", "workspace", "graphs"):
        assert f"\n{name} " in told[: told.index("error: ")]


def test_a_copy_of_the_kv_pool_is_warned_of(
    build: Run, trt: BuildingTensorRT, capsys: pytest.CaptureFixture[str]
) -> None:
    """TensorRT may keep copies of what plugins update in place; then its activations hold a pool."""
    assert build("--backend", "tensorrt") == 0
    assert "warning" not in capsys.readouterr().err
    trt.faults.activation_bytes = 10**9
    assert build("--backend", "tensorrt", "--force") == 0
    told = capsys.readouterr().err
    assert "warning: draft.engine asks for 1.0 GB beside its inputs" in told
    assert "build with --no-aliased_io" in told
    assert [built.config.previewed for built in trt.built] == [[Preview.ALIASED_PLUGIN_IO_10_03]] * 4
    assert build("--backend", "tensorrt", "--force", "--no-aliased_io") == 0
    plugins = [call.op for built in trt.built for call in built.recording.calls if isinstance(call.op, Plugin)]
    declared = [dict(plugin.fields)["aliased_io"] for plugin in plugins if plugin.name == "PillarAttention"]
    assert declared == [1] * 4 * MODEL.num_layers + [0] * 2 * MODEL.num_layers
    assert trt.built[-1].config.previewed == []


@pytest.mark.parametrize(
    ("version", "gpu", "obstacle"),
    [
        ("10.12.0.36", H200, "FP8 weights need TensorRT 10.13 or newer, found 10.12.0.36"),
        (VERSION, Gpu("NVIDIA A100", (8, 0)), "FP8 weights need a GPU of compute capability 8.9 or more, found 8.0"),
        (VERSION, Gpu("NVIDIA L40S", (8, 9)), None),
        ("10.13.3.9", H200, None),
    ],
)
def test_fp8_needs_scales_as_inputs(
    version: str, gpu: Gpu, obstacle: str | None, trt: BuildingTensorRT, monkeypatch: pytest.MonkeyPatch
) -> None:
    trt.__version__ = version
    monkeypatch.setattr(availability, "find_gpu", lambda _device: gpu)
    find = partial(find_usable, build=BUILD, device="auto", plugin_library=None)
    assert find(MODEL).gpu == gpu
    if obstacle is None:
        assert find(replace(MODEL, quantization="fp8")).gpu == gpu
    else:
        with pytest.raises(UnusableError, match=re.escape(obstacle)):
            find(replace(MODEL, quantization="fp8"))


def test_an_fp8_kv_cache_needs_a_gpu_with_fp8(trt: BuildingTensorRT, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of any TensorRT: no layer but plugins takes its scales."""
    trt.__version__ = "10.3.0"
    build = replace(BUILD, kv_cache_dtype="fp8")
    monkeypatch.setattr(availability, "find_gpu", lambda _device: Gpu("NVIDIA L40S", (8, 9)))
    assert find_usable(MODEL, build, "auto", None).gpu.name == "NVIDIA L40S"
    monkeypatch.setattr(availability, "find_gpu", lambda _device: Gpu("NVIDIA A100", (8, 0)))
    with pytest.raises(UnusableError, match=r"an FP8 KV cache needs a GPU of compute capability 8\.9 or more, found 8"):
        find_usable(MODEL, build, "auto", None)


def test_blackwell_needs_a_newer_tensorrt(trt: BuildingTensorRT, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(availability, "find_gpu", lambda _device: Gpu("NVIDIA B200", (10, 0)))
    trt.__version__ = "10.7.0"
    with pytest.raises(UnusableError, match=r"capability 10\.0 or newer need TensorRT 10\.8 or newer, found 10\.7\.0"):
        find_usable(MODEL, BUILD, "auto", None)
    trt.__version__ = "10.8.0"
    assert find_usable(MODEL, BUILD, "auto", None).gpu.name == "NVIDIA B200"


def test_memory_for_another_gpu(build: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert build("--backend", "torch", "--gpu_memory_gb", "1.5") == 0
    told = capsys.readouterr().err
    assert "of 1.50 GB on the GPU to come" in told
    assert "largest batch" in told
    assert "largest context" in told
    assert build("--gpu_memory_gb", "0") == 2
    assert "gpu_memory_gb must be in 0..1000000, found 0.0" in error(capsys)


def test_a_tensor_that_tensorrt_cannot_count(build: Run, capsys: pytest.CaptureFixture[str]) -> None:
    huge = ("--max_batch_size", "1000", "--max_seq_len", "8000", "--max_num_tokens", "20000", "--max_budget", "3000000")
    assert build("--backend", "tensorrt", *huge) == 2
    assert "draft.engine: layers.0.pillars: expected at most 2147483647 elements, found 3000000000" in error(capsys)


def test_report_of_a_build(build: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "report.json"
    assert build("--backend", "tensorrt", "--json", str(path)) == 0
    report = json.loads(path.read_text())
    metrics = {each["name"]: each["value"] for each in report["metrics"]}
    assert (metrics["draft_engine_bytes"], metrics["verify_engine_bytes"]) == (5, 6)
    assert (metrics["draft_activation_bytes"], metrics["verify_activation_bytes"]) == (4096, 2 * 3 * 4096)
    assert [each["name"] for each in report["timings"]][2:] == ["build_draft_engine", "build_verify_engine"]
    assert "draft.engine 0.0 MB, verify.engine 0.0 MB" in capsys.readouterr().out


@pytest.mark.parametrize("backend", ["tensorrt", "auto"])
def test_run_gives_the_torch_executors_tokens(
    backend: str, build: Run, decode: Run, trt: BuildingTensorRT, tmp_path: Path
) -> None:
    """auto takes TensorRT, since it is here."""
    assert build("--backend", backend) == 0
    reports = {}
    for name in (backend, "torch"):
        ran = len(trt.runs)
        assert decode("--backend", name, "--json", str(tmp_path / f"{name}.json")) == 0
        assert (len(trt.runs) > ran) == (name != "torch")
        reports[name] = json.loads((tmp_path / f"{name}.json").read_text())
    assert reports[backend]["config"]["backend"] == {"name": "tensorrt", "reason": f"TensorRT {VERSION} on NVIDIA H200"}
    assert reports["torch"]["config"]["backend"] == {"name": "torch", "reason": "as asked for"}
    assert reports[backend]["requests"][0]["text"] == reports["torch"]["requests"][0]["text"]
    assert sorted({kind for kind, _, _ in trt.runs}) == ["draft", "verify"]


def test_auto_without_tensorrt_builds_and_runs_for_torch(
    build: Run,
    decode: Run,
    trt: BuildingTensorRT,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert build() == 0
    assert "no TensorRT engines: Python cannot import tensorrt" in capsys.readouterr().err
    assert read_engine_config(tmp_path / "engine").tensorrt is None
    assert decode() == 0
    assert trt.runs == []
    assert decode("--backend", "tensorrt") == 2
    assert "backend tensorrt: " in (told := error(capsys))
    assert "holds no TensorRT engines (build_engine.py --backend tensorrt)" in told


@pytest.mark.parametrize(
    ("version", "gpu", "message"),
    [
        ("11.4.1.2", H200, f"built by TensorRT {VERSION}, found TensorRT 11.4.1.2"),
        ("10.13.3", H200, f"built by TensorRT {VERSION}, found TensorRT 10.13.3"),
        (VERSION, Gpu("NVIDIA B200", (10, 0)), r"built for NVIDIA H200 (9.0), found NVIDIA B200 (10.0)"),
        (VERSION, Gpu("NVIDIA H100", (9, 0)), r"built for NVIDIA H200 (9.0), found NVIDIA H100 (9.0)"),
    ],
)
@pytest.mark.parametrize("backend", ["tensorrt", "auto"])
def test_engines_of_another_gpu_or_tensorrt_are_refused(
    backend: str,
    version: str,
    gpu: Gpu,
    message: str,
    build: Run,
    decode: Run,
    trt: BuildingTensorRT,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert build("--backend", "tensorrt") == 0
    trt.__version__ = version
    monkeypatch.setattr(availability, "find_gpu", lambda _device: gpu)
    assert decode("--backend", backend) == 2
    told = error(capsys)
    assert message in told
    assert "--backend torch" in told
    assert decode("--backend", "torch") == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--dtype", "float32"), "expected an engine of bfloat16 or float16, found float32"),
        (("--page_size", "8"), "plugins: expected page_size 16, 32 or 64, found 8"),
        (("--plugin_library", "nowhere.so"), "plugin_library: expected a file, found none at nowhere.so"),
        (("--builder_opt", "6"), "builder_opt must be at most 5, found 6"),
    ],
)
def test_what_tensorrt_cannot_serve(
    flags: tuple[str, ...], message: str, build: Run, trt: BuildingTensorRT, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build("--backend", "tensorrt", *flags) == 2
    assert message in error(capsys)
    assert trt.built == []


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ("10.2.0", "expected TensorRT 10.3 or newer and older than 12, found 10.2.0"),
        ("12.0.1", "expected TensorRT 10.3 or newer and older than 12, found 12.0.1"),
        ("9.3.0.1", "found 9.3.0.1"),
    ],
)
def test_versions_that_are_not_served(
    version: str, message: str, build: Run, trt: BuildingTensorRT, capsys: pytest.CaptureFixture[str]
) -> None:
    trt.__version__ = version
    assert build("--backend", "tensorrt") == 2
    assert message in error(capsys)


def test_no_gpu_and_no_plugins(
    build: Run, trt: BuildingTensorRT, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(availability, "find_gpu", lambda _device: Gpu("Tesla T4", (7, 5)))
    assert build("--backend", "tensorrt") == 2
    assert "expected a GPU of compute capability 8.0 or more, found Tesla T4, of 7.5" in error(capsys)
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "tensorrt", trt)  # type: ignore[arg-type]

    def none() -> Path:
        raise PluginsUnavailableError("libsparsespec_plugins.so was not built")

    monkeypatch.setattr(availability, "plugin_library_path", none)
    assert build("--backend", "tensorrt") == 2
    assert "libsparsespec_plugins.so was not built" in error(capsys)


def test_tensorrt_builds_nothing(
    build: Run, trt: BuildingTensorRT, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trt.builder_faults.nothing_built = True
    assert build("--backend", "tensorrt") == 2
    assert "draft.engine: TensorRT built nothing: could not find any implementation for node gate_up" in error(capsys)
    assert not (tmp_path / "engine").exists()


def test_a_timing_cache_of_another_tensorrt(
    build: Run, trt: BuildingTensorRT, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trt.builder_faults.foreign_timing_cache = True
    cache = tmp_path / "timing.cache"
    cache.write_bytes(b"of another")
    assert build("--backend", "tensorrt", "--timing_cache", str(cache)) == 2
    assert f"timing_cache: {cache}: not one of this TensorRT and GPU" in error(capsys)
    assert cache.read_bytes() == b"of another"


def test_a_timing_cache_that_could_not_be_written(
    build: Run, trt: BuildingTensorRT, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Told before anything is built, which takes minutes."""
    assert build("--backend", "tensorrt", "--timing_cache", str(tmp_path / "nowhere" / "timing.cache")) == 2
    assert "timing.cache: expected a file in a directory that can be written" in error(capsys)
    assert trt.built == []


def test_an_interrupt_ends_the_build(
    build: Run,
    trt: BuildingTensorRT,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Python raises it in one of TensorRT's callbacks, which no exception may leave."""

    def interrupt(_self: Progress, _task: TaskID, **_options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Progress, "update", interrupt)
    assert build("--backend", "tensorrt") == 130
    assert capsys.readouterr().err.rstrip().endswith("interrupted")
    assert trt.built == []
    assert not (tmp_path / "engine").exists()


def test_a_corrupt_section(build: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert build("--backend", "tensorrt") == 0
    path = tmp_path / "engine" / "config.json"
    document = json.loads(path.read_text())
    for section, message in (
        ([], "tensorrt: expected an object, found []"),
        ({**document["tensorrt"], "gpu": 3}, "tensorrt: gpu: expected str, found 3"),
        ({**document["tensorrt"], "score_planes": "all"}, "tensorrt: score_planes: expected one of none, mean, "),
        ({"version": "11"}, "tensorrt: missing key 'gpu'"),
    ):
        path.write_text(json.dumps({**document, "tensorrt": section}))
        assert run.main(["--engine_dir", str(tmp_path / "engine"), "--input_text", "x"]) == 2
        assert message in error(capsys)


def test_force_replaces_engines(build: Run, tmp_path: Path) -> None:
    assert build("--backend", "tensorrt") == 0
    assert build("--backend", "torch", "--force") == 0
    assert not (tmp_path / "engine" / "draft.engine").exists()
    assert read_engine_config(tmp_path / "engine") == replace(read_engine_config(tmp_path / "engine"), tensorrt=None)
