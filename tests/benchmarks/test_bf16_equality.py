"""The check of 16-bit speculation, on tiny engines that the CPU runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import bf16_equality
import text_prompts
from acceptance_study.texts import Text
from bf16_equality import Equality, compare, measure
from forced_plain import Way, forced_logits
from sparsespec.builder.errors import InputError
from sparsespec.runtime.config import RuntimeConfig, SpeculationConfig
from sparsespec.runtime.llm import LLM
from sparsespec.runtime.loading import LoadedEngine
from sparsespec.runtime.outputs import RequestOutput
from tiny_llm import BUILD, DraftCounts, first_answers, greedy, random_prompts, tiny_engine
from tiny_models import tiny_model_config, write_tiny_engine

PROMPTS = random_prompts((60, 97, 7, 33, 1))
SPECULATION = SpeculationConfig(k=4, min_budget=24)
BF16 = replace(BUILD, dtype="bfloat16")


def with_token(output: RequestOutput, place: int, token: int) -> RequestOutput:
    """The same answer but for one token."""
    answer = output.outputs[0]
    tokens = (*answer.token_ids[:place], token, *answer.token_ids[place + 1 :])
    return replace(output, outputs=(replace(answer, token_ids=tokens),))


@pytest.mark.parametrize(("batch_size", "chunk_size"), [(5, 256), (2, 16), (1, 7)])
def test_plain_decoding_forced_along_its_own_tokens_takes_them(batch_size: int, chunk_size: int) -> None:
    plain = first_answers(LLM(tiny_engine(), SpeculationConfig(drafter="none")).generate(PROMPTS, greedy(20)))
    texts = [(*prompt, *answer) for prompt, answer in zip(PROMPTS, plain, strict=True)]
    logits = forced_logits(tiny_engine(), texts, 20, Way(batch_size, chunk_size, "auto"))
    assert logits.argmax(dim=-1).tolist() == [list(answer) for answer in plain]


def test_speculation_in_bf16_is_plain_decoding_up_to_near_ties() -> None:
    engine = tiny_engine(0, BF16)
    outputs = LLM(engine, SPECULATION).generate(PROMPTS, greedy(48))
    assert DraftCounts.of(outputs).accepted > 0
    assert DraftCounts.of(outputs).rejected > 0
    found = measure(engine, outputs, RuntimeConfig())
    assert found.num_tokens == 48 * len(PROMPTS)
    assert found.num_beyond == 0
    assert 0 <= found.largest_gap <= found.eps < 0.5


def test_worked_by_hand() -> None:
    """Three tokens of one answer: plain decoding's own, another within eps, and one beyond it.

    In another batch the gap between the two best moves from 0.25 to 0.75 for the second token, and less for the others;
    what the third best does is of no account.
    """
    plain = torch.tensor([[[5.0, 1.0, 0.0], [4.0, 2.0, 3.75], [8.375, 1.0, 9.0]]])
    other = torch.tensor([[[5.0, 1.25, 9.0], [4.25, 2.0, 3.5], [8.375, 1.0, 9.25]]])
    found = compare(torch.tensor([[0, 2, 0]]), plain, [plain, other])
    assert found == Equality(num_tokens=3, num_differing=2, largest_gap=0.625, num_beyond=1, eps=0.5)


def test_logits_that_are_not_finite_are_no_equality() -> None:
    """A NaN is neither below nor above eps."""
    plain = torch.tensor([[[5.0, 1.0, 0.0]]])
    for wrong in ((plain, [plain * torch.nan]), (plain * torch.inf, [plain])):
        with pytest.raises(InputError, match="expected finite logits"):
            compare(torch.tensor([[0]]), *wrong)


def test_a_wrong_token_is_found() -> None:
    """The least likely one of all, in the middle of an answer."""
    engine = tiny_engine(0, BF16)
    outputs = LLM(engine, SPECULATION).generate(PROMPTS, greedy(16))
    text = [*PROMPTS[1], *outputs[1].outputs[0].token_ids]
    worst = int(forced_logits(engine, [text], 16, Way(1, 64, "auto"))[0, 9].argmin())
    found = measure(engine, [*outputs[:1], with_token(outputs[1], 9, worst), *outputs[2:]], RuntimeConfig())
    assert found.num_beyond >= 1
    assert found.largest_gap > 1


def test_eps_is_taken_from_other_batches_and_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As large a batch among them as a verification's rows make."""
    ways: list[tuple[int, Way]] = []

    def counted(engine: LoadedEngine, texts: Sequence[Sequence[int]], num_new: int, way: Way) -> Tensor:
        ways.append((len(texts), way))
        return forced_logits(engine, texts, num_new, way)

    monkeypatch.setattr(bf16_equality, "forced_logits", counted)
    engine = tiny_engine(0, BF16)
    measure(engine, LLM(engine, SPECULATION).generate(PROMPTS, greedy(8)), RuntimeConfig())
    assert [count for count, _ in ways] == [5, 5, 5, 40]
    assert len({way for _, way in ways}) == 4
    assert ways[-1][1].batch_size == 40


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_report(dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [Text("licences", str(number), "with the other thing " * 9 + str(number) * 40) for number in range(3)]
    monkeypatch.setattr(text_prompts, "collect_texts", lambda *_: texts)
    build = replace(BUILD, dtype=dtype)  # type: ignore[arg-type]
    engine_dir = write_tiny_engine(tmp_path / "engine", tiny_model_config(), build, seed=5)
    sizes = ("--num_prompts", "3", "--context", "40", "--num_tokens", "24", "--k", "4", "--min_budget", "16")
    report = tmp_path / "report.json"
    flags = ("--engine_dir", str(engine_dir), "--json", str(report), "--device", "cpu", *sizes)
    assert bf16_equality.main(flags) == 0
    metrics = {metric["name"]: metric["value"] for metric in json.loads(report.read_text())["metrics"]}
    assert metrics["tokens"] == 72
    assert metrics["tokens_equal"] + metrics["tokens_differing"] == 72
    assert metrics["tokens_beyond_eps"] == 0
    assert metrics["drafts"] > metrics["drafts_accepted"] > 0


def test_too_few_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(text_prompts, "collect_texts", lambda *_: [Text("licences", "one", "short")])
    engine_dir = write_tiny_engine(tmp_path / "engine", tiny_model_config(), BUILD, seed=5)
    report = tmp_path / "report.json"
    assert bf16_equality.main(("--engine_dir", str(engine_dir), "--json", str(report), "--device", "cpu")) == 2
    assert "error: num_prompts: found 0 texts of 2048 tokens" in capsys.readouterr().err
    assert not report.exists()
