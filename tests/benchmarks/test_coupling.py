"""The comparison of couplings, on a tiny engine."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import pytest

import coupling
import text_prompts
from acceptance_study.texts import Text
from tiny_llm import BUILD
from tiny_models import tiny_model_config, write_tiny_engine


def test_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [Text("licences", str(number), "with the other thing " * 9 + str(number) * 40) for number in range(3)]
    monkeypatch.setattr(text_prompts, "collect_texts", lambda *_: texts)
    engine_dir = write_tiny_engine(tmp_path / "engine", tiny_model_config(), BUILD, seed=5)
    sizes = ("--num_prompts", "3", "--context", "40", "--num_tokens", "24", "--k", "4", "--min_budget", "32")
    report = tmp_path / "report.json"
    assert coupling.main(("--engine_dir", str(engine_dir), "--json", str(report), "--device", "cpu", *sizes)) == 0
    metrics = {metric["name"]: metric["value"] for metric in json.loads(report.read_text())["metrics"]}
    assert list(metrics) == [coupling.metric_name(*each) for each in product(("rejection", "gumbel"), (1.0, 0.95))]
    assert all(0 < accepted <= 4 for accepted in metrics.values())
