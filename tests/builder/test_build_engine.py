from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sparsespec.builder import build_engine
from sparsespec.builder.engine_dir import load_weights, read_engine_config
from sparsespec.builder.fused_weights import fused_specs
from sparsespec.builder.rope import YarnScaling, yarn_amplitude
from sparsespec.builder.tokenizer_files import load_tokenizer
from tiny_gguf import write_tiny_gguf
from tiny_models import tiny_hf_model, tiny_llama, tiny_model_config, write_tiny_hf_checkpoint

MODEL = tiny_model_config(num_layers=1)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_tiny_hf_checkpoint(tmp_path / "hf", tiny_llama(MODEL).to(torch.bfloat16))


def run(checkpoint: Path | str, output: Path, *flags: str) -> int:
    return build_engine.main(["--checkpoint_dir", str(checkpoint), "--output_dir", str(output), *flags])


def test_engine_is_complete(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "engine"
    assert run(checkpoint, output, "--page_size", "8") == 0
    config = read_engine_config(output)
    assert (config.model, config.build.dtype, config.build.page_size) == (MODEL, "bfloat16", 8)
    assert list(load_weights(output, config, "cpu")) == list(fused_specs(MODEL, "bfloat16"))
    assert load_tokenizer(output).eos_token_id == 0
    assert capsys.readouterr().out.startswith(f"{output}: 0.1M parameters, 0.1 MB, built in ")


def test_gguf_in_another_dtype(tmp_path: Path) -> None:
    llama = tiny_llama(MODEL)
    output = tmp_path / "engine"
    assert run(write_tiny_gguf(tmp_path / "tiny.gguf", llama), output, "--dtype", "float64") == 0
    weights = load_weights(output, read_engine_config(output), "cpu")
    assert torch.equal(weights["embedding"], llama.state_dict()["model.embed_tokens.weight"].double())


def test_report(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    assert run(checkpoint, tmp_path / "engine", "--json", str(path)) == 0
    report = json.loads(path.read_text())
    assert (report["schema"], report["tool"]) == ("sparsespec.report/1", "build_engine")
    assert report["config"]["job"]["output_dir"] == str(tmp_path / "engine")
    assert report["config"]["build"]["dtype"] == "bfloat16"
    weights = load_weights(tmp_path / "engine", read_engine_config(tmp_path / "engine"), "cpu")
    count = sum(tensor.numel() for tensor in weights.values())
    assert report["metrics"] == [
        {"name": "parameters", "value": count, "unit": "count"},
        {"name": "weight_bytes", "value": 2 * count, "unit": "bytes"},
    ]


def failure(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that stderr ends with; progress may come before it."""
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    assert captured.out == ""
    return captured.err[captured.err.index("error: ") :]


def test_max_seq_len_beyond_the_model(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(checkpoint, tmp_path / "engine", "--max_seq_len", "8193") == 2
    error = failure(capsys)
    assert "max_seq_len must be at most 8192, which is how far the model's positions reach, found 8193" in error
    assert "--max_seq_len 8192" in error
    assert not (tmp_path / "engine").exists()


@pytest.mark.parametrize(("max_seq_len", "code"), [("2048", 0), ("2049", 2)])
def test_yarn_reaches_as_far_as_it_stretches(max_seq_len: str, code: int, tmp_path: Path) -> None:
    """Like Qwen3's own advice: max_position_embeddings is not the original context times the factor."""
    yarn = YarnScaling("yarn", 4.0, 32.0, 1.0, 512, yarn_amplitude(4.0))
    model = tiny_model_config(num_layers=1, family="qwen3", rope_scaling=yarn)
    hf_model = tiny_hf_model(replace(model, max_position_embeddings=640))
    checkpoint = write_tiny_hf_checkpoint(tmp_path / "yarn", hf_model)
    assert run(checkpoint, tmp_path / "engine", "--max_seq_len", max_seq_len) == code


def test_bad_build_config(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(checkpoint, tmp_path / "engine", "--max_num_tokens", "10") == 2
    assert "max_num_tokens must be at least" in failure(capsys)


def test_no_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path / "none", tmp_path / "engine") == 2
    assert "expected a Hugging Face directory" in failure(capsys)


def test_markup_in_a_path_is_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("[/b]", tmp_path / "engine") == 2
    assert "[/b]: expected a Hugging Face directory" in failure(capsys)


def test_existing_engine_needs_force(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(checkpoint, tmp_path / "engine") == 0
    capsys.readouterr()
    assert run(checkpoint, tmp_path / "engine") == 2
    assert "--force" in failure(capsys)
    assert run(checkpoint, tmp_path / "engine", "--force", "--dtype", "float16") == 0
    assert read_engine_config(tmp_path / "engine").build.dtype == "float16"


def test_report_that_cannot_be_written(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(checkpoint, tmp_path / "engine", "--json", str(tmp_path / "none" / "report.json")) == 2
    assert "cannot write the report" in failure(capsys)
    assert not (tmp_path / "engine").exists()


def test_report_inside_the_engine(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "engine").mkdir()
    assert run(checkpoint, tmp_path / "engine", "--json", str(tmp_path / "engine" / "report.json")) == 2
    assert "expected a place outside output_dir" in failure(capsys)
    assert list((tmp_path / "engine").iterdir()) == []


def test_interrupt(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(build_engine, "fused_specs", interrupted)
    assert run(checkpoint, tmp_path / "engine") == 130
    assert not (tmp_path / "engine").exists()


def test_unwritable_place_is_one_error(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert run(checkpoint, tmp_path / "file" / "engine") == 2
    assert "cannot write the engine" in failure(capsys)


@pytest.mark.parametrize("flags", [["--checkpoint", "x"], ["--checkpoint_dir", "x"], ["--nonsense"]])
def test_usage_errors_exit_with_2(flags: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        build_engine.main(flags)
    assert stop.value.code == 2


def test_runs_as_a_script_without_importing_torch_for_help() -> None:
    script = Path(__file__).parents[2] / "builder" / "build_engine.py"
    command = [sys.executable, "-X", "importtime", str(script), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | {"COLUMNS": "120"})
    assert "--max_draft_len N" in done.stdout
    imported = [line.rsplit("|", 1)[1].strip() for line in done.stderr.splitlines() if "|" in line]
    assert "rich.progress" in imported
    assert "torch" not in imported
