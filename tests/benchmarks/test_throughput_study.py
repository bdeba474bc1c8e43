"""What the throughput benchmark is made of, on the CPU with tiny models; no times are looked at."""

from __future__ import annotations

import gc
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import throughput
from sparsespec.builder.errors import InputError
from sparsespec.runtime.config import RuntimeConfig, SpeculationConfig
from sparsespec.runtime.gpu_timeline import KernelRun
from sparsespec.runtime.llm import LLM
from sparsespec.runtime.sampling_params import SamplingParams
from throughput_study.agreement import ForcedAgreement, wanted_counts
from throughput_study.cases import Measured, Traffic
from throughput_study.growth import GrowthRun, acceptance, grow
from throughput_study.latency import LatencyCase, measure_latency
from throughput_study.peers import answer, hf_llama
from throughput_study.timeline import summarise
from throughput_study.windows import Load, Window, collector_watched
from tiny_llm import greedy, random_prompts, tiny_engine

SPECULATION = SpeculationConfig(k=4, ratio=0.1, min_budget=16)
PROMPTS = random_prompts((40, 50, 61))


def speculative_llm() -> LLM:
    return LLM(tiny_engine(), SPECULATION, RuntimeConfig(cuda_graphs="on"))


@pytest.mark.parametrize("mean", [0.0, 1.5, 3.0, 4.0])
def test_drafts_agree_as_often_as_is_asked(mean: float) -> None:
    llm = speculative_llm()
    executor = llm.executor
    executor.replace_step_ops(ForcedAgreement(executor.step_ops, torch.tensor(mean)))
    outputs = llm.generate(PROMPTS, greedy(60))
    # The last of a request may be cut off by its end.
    checks = [check for output in outputs for check in output.outputs[0].verifications[:-1]]
    counts = [check.num_accepted for check in checks]
    assert {*counts} <= {int(mean), int(mean) + (mean % 1 > 0)}
    assert all(check.num_tokens == check.num_accepted + 1 for check in checks)
    assert abs(sum(counts) / len(counts) - mean) < 0.35


def test_wanted_counts_have_their_mean() -> None:
    counts = wanted_counts(torch.arange(20000), torch.tensor(6.16))
    assert counts.unique().tolist() == [6, 7]
    assert abs(float(counts.double().mean()) - 6.16) < 0.01


def test_a_window_counts_tokens_of_its_steps_alone() -> None:
    load = Load(LLM(tiny_engine(), SpeculationConfig(drafter="none")), PROMPTS, greedy(60))
    load.warm_up()
    before = dict(load.lengths)
    window = load.measure(7)
    assert window.num_tokens == 7 * len(PROMPTS)
    assert [load.lengths[each] - before[each] for each in before] == [7] * len(PROMPTS)
    assert window.context == sum(before.values()) / len(PROMPTS) + 3.5
    assert window.seconds > 0
    load.end()
    assert not load.llm.has_requests


def test_a_load_settles_when_no_graph_is_captured_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    load = Load(LLM(tiny_engine(), SPECULATION), PROMPTS, greedy(900))
    steps: list[int] = []
    monkeypatch.setattr(Load, "step", lambda _: steps.append(0) or [])
    monkeypatch.setattr(Load, "num_graphs", property(lambda _: min(len(steps) // 10, 3)))
    load.settle()
    assert len(steps) == 30 + 6 * 5
    monkeypatch.setattr(Load, "num_graphs", property(lambda _: len(steps)))
    load.settle()
    assert len(steps) == 60 + 45 * 5


def test_an_adaptive_load_settles_when_nothing_else_is_chosen_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    llm = LLM(tiny_engine(), replace(SPECULATION, adaptive=True), RuntimeConfig(cuda_graphs="on"))
    load = Load(llm, PROMPTS, greedy(900))
    steps: list[int] = []
    monkeypatch.setattr(Load, "step", lambda _: steps.append(0) or [])
    monkeypatch.setattr(Load, "chosen", property(lambda _: f"way {min(len(steps) // 10, 3)}"))
    load.settle()
    assert len(steps) == 30 + 20 * 5


def test_the_collectors_time_is_counted() -> None:
    with collector_watched() as clock:
        gc.collect()
    taken = clock.seconds
    assert taken > 0
    gc.collect()
    assert clock.seconds == taken
    assert clock not in gc.callbacks


def test_nobody_may_end_in_a_window() -> None:
    load = Load(LLM(tiny_engine(), SpeculationConfig(drafter="none")), PROMPTS, greedy(12))
    load.warm_up()
    with pytest.raises(RuntimeError, match="ended inside"):
        load.measure(20)


def test_growth_reads_the_clock_to_the_end() -> None:
    run = grow(tiny_engine(), "some", SPECULATION, Traffic(PROMPTS, greedy(100)), 64)
    counts = [reading.num_tokens for reading in run.readings]
    assert counts == sorted(counts)
    assert run.readings[-1].context == sum(map(len, PROMPTS)) / 3 + 100
    assert run.readings[-1].num_tokens < 300  # those of the warm-up do not count
    assert 0 <= run.accepted <= 4
    assert run.tokens_per_second > 0


def test_acceptance_leaves_plain_verifications_out() -> None:
    outputs = speculative_llm().generate(PROMPTS, replace(greedy(30), speculate=False))
    assert acceptance(outputs) == (0, 0, 0)


def test_norms_are_stored_among_the_others() -> None:
    names = ("step_rows_kernel", "nvjet_gemm", "add_rms_norm_kernel", "silu_mul_kernel", "step_rows_kernel")
    timeline = summarise([KernelRun(name, 10.0 * place, 10.0) for place, name in enumerate(names)])
    assert timeline.by_kind == pytest.approx({"sampling": 0.01, "gemm": 0.01, "other": 0.02})


def test_what_was_measured_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    window = Window(num_requests=2, num_steps=4, num_tokens=8, seconds=0.5, context=10.0)
    plain = Measured("plain", SpeculationConfig(drafter="none"), window)
    fast = Measured("fast", SPECULATION, replace(window, seconds=0.25))
    monkeypatch.setitem(throughput.EXPERIMENTS, "forced", lambda _: iter((plain, fast)))  # type: ignore[arg-type]
    monkeypatch.setattr(throughput, "this_machine", lambda _: window)
    path = tmp_path / "x.json"
    assert throughput.run(throughput.ThroughputConfig("forced", path)) == 0
    document = json.loads(path.read_text())
    assert [each["label"] for each in document["results"]] == ["plain", "fast"]
    assert document["results"][1]["speculation"]["k"] == 4
    assert fast.speedup_over(plain) == 2
    assert "2.00x" in throughput._line(fast, plain)


def test_unknown_experiment(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="experiment must be one of forced"):
        throughput.ThroughputConfig("fast", tmp_path / "x.json")


def test_a_real_model_is_asked_for() -> None:
    with pytest.raises(InputError, match="engine_dir"):
        next(iter(throughput.EXPERIMENTS["shapes"](throughput.Choice(None, None, None))))


def test_growth_line_tells_temperature() -> None:
    traffic = Traffic(PROMPTS, SamplingParams(max_tokens=40, temperature=0.5))
    run = grow(tiny_engine(), "some", SPECULATION, traffic, 64)
    assert isinstance(run, GrowthRun)
    assert "T 0.5" in throughput._line(run, run)


def test_arrivals_count_requests_that_ran_before() -> None:
    joining = Traffic([PROMPTS[2]], greedy(5))
    case = LatencyCase(Traffic(PROMPTS, greedy(900)), joining, RuntimeConfig(chunk_size=8))
    build = replace(tiny_engine().config.build, max_batch_size=4, max_seq_len=1000)
    engine = tiny_engine(0, build)
    found = measure_latency(engine, "some", SPECULATION, case)
    assert found.num_requests == 3
    assert len(found.first_token_ms) == 1
    assert 1 <= found.steady.tokens <= 5
    assert found.steady.p50_ms <= found.steady.p99_ms
    # The last prompt joins in chunks of 8, so that it takes 8 steps and more, in which others gain tokens.
    assert found.beside_prompts.count > 2
    assert "first token" in found.summary()


def test_transformers_gets_the_engines_weights() -> None:
    """The same logits, up to rounding, as the engine's own plain decoding."""
    engine = tiny_engine()
    model = hf_llama(engine.config.model, engine.weights)
    prompt = list(PROMPTS[0])
    expected = LLM(engine, SpeculationConfig(drafter="none")).generate([prompt], greedy(1))[0].outputs[0].token_ids[0]
    with torch.inference_mode():
        logits = model(torch.tensor([prompt])).logits[0, -1]
    assert int(logits.argmax()) == expected


def test_whole_answers_count_every_token() -> None:
    window = answer(tiny_engine(), SPECULATION, Traffic(PROMPTS, greedy(20)), 64)
    assert (window.num_requests, window.num_tokens, window.num_steps) == (3, 60, 1)
    assert window.context == sum(map(len, PROMPTS)) / 3 + 10
