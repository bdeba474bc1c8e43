from __future__ import annotations

from pathlib import Path

import pytest

import tokenizer_parity
from tiny_gguf import write_tiny_gguf
from tiny_models import tiny_hf_model, tiny_model_config


def test_missing_llama_cpp_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(tokenizer_parity, "find_spec", lambda _: None)
    assert tokenizer_parity.main(["none.gguf"]) == 2
    assert "error: expected llama.cpp, found none; pip install llama-cpp-python" in capsys.readouterr().err


def test_a_row_counts_what_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("llama_cpp")
    monkeypatch.setattr(tokenizer_parity, "_sources", lambda _: ["the end of path\n"])
    path = write_tiny_gguf(tmp_path / "tiny.gguf", tiny_hf_model(tiny_model_config(vocab_size=260)))
    assert tokenizer_parity.main([str(path)]) == 0
    header, _, row = capsys.readouterr().out.splitlines()
    assert len(header.split("|")) == len(row.split("|"))
    assert row.endswith("| 0 | 0 |")
