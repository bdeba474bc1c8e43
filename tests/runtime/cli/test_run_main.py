from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from sparsespec.builder.build_config import BuildConfig
from sparsespec.runtime import LLM, SamplingParams, run
from sparsespec.runtime.device import torch_executor
from sparsespec.runtime.profile_summary import VERBS
from tiny_models import tiny_model_config, write_tiny_engine

MODEL = tiny_model_config()
BUILD = BuildConfig("float64", max_batch_size=4, max_seq_len=256, max_draft_len=8, max_budget=192)
# A budget of about half the context: some drafts are right and some are wrong.
FLAGS = ("--max_output_len", "24", "--ignore_eos", "--min_budget", "60", "--k", "3", "--device", "cpu")
TEXT = "the cat and the dog sat on the mat and then the cat ate the dog and the mat ate them all"
SCHEMA = Path(__file__).parents[3] / "docs" / "report.schema.json"


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_engine(tmp_path_factory.mktemp("run") / "engine", MODEL, BUILD, seed=3)


def call(engine: Path, *flags: str) -> int:
    return run.main(["--engine_dir", str(engine), *FLAGS, *flags])


def answer_text(engine: Path, text: str) -> str:
    llm = LLM(engine)
    params = SamplingParams(max_tokens=24, temperature=0, ignore_eos=True, speculate=False)
    return llm.generate([llm.encode_chat(text)], params)[0].outputs[0].text


def read_report(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def metric_values(metrics: list[dict[str, Any]]) -> dict[str, float]:
    return {metric["name"]: metric["value"] for metric in metrics}


def test_one_prompt_streams_the_text_of_plain_decoding(engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(engine, "--input_text", TEXT, "--compare_plain") == 0
    out = capsys.readouterr().out
    assert out.startswith(answer_text(engine, TEXT) + "\n\nsummary")
    assert "token for token" in out
    assert "repetitive: at least half" in out
    assert max(len(line) for line in out.splitlines()) <= run.FILE_WIDTH


def test_streaming_writes_the_text_piece_by_piece(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = []
    monkeypatch.setattr(
        "sparsespec.runtime.cli.run_display.print", lambda text, **_: pieces.append(text), raising=False
    )
    assert call(engine, "--input_text", TEXT) == 0
    assert len([piece for piece in pieces if piece]) > 3
    assert "".join(pieces) == answer_text(engine, TEXT) + "\n"


def test_no_streaming_prints_the_same(engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(engine, "--input_text", TEXT, "--no-streaming") == 0
    assert capsys.readouterr().out.startswith(answer_text(engine, TEXT) + "\n\nsummary")


def test_prompts_share_a_batch_and_a_refused_one_stops_no_other(
    engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "report.json"
    long = "x" * 300
    assert call(engine, "--input_text", "one", long, TEXT, "--compare_plain", "--json", str(path)) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: prompt 2: the prompt has 303 tokens; with at least one new token")
    assert "max_seq_len 256" in captured.err
    first, last = answer_text(engine, "one"), answer_text(engine, TEXT)
    assert captured.out.startswith(f"--- prompt 1 ---\n{first}\n\n--- prompt 3 ---\n{last}\n\nsummary")
    assert [request["finish_reason"] for request in read_report(path)["requests"]] == ["length", "refused", "length"]


def test_all_prompts_refused(engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(engine, "--input_text", "x" * 300) == 2
    assert capsys.readouterr().out == ""


def test_several_answers_per_prompt(engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--temperature", "1", "--random_seed", "5", "--num_return_sequences", "2")
    assert call(engine, "--input_text", "one", "two", *flags) == 0
    out = capsys.readouterr().out
    headings = [line for line in out.splitlines() if line.startswith("--- ")]
    assert headings == [f"--- prompt {p}, answer {a} ---" for p in (1, 2) for a in (1, 2)]
    assert call(engine, "--input_text", "one", "two", *flags) == 0
    assert capsys.readouterr().out.split("summary")[0] == out.split("summary")[0]


def test_report_holds_flags_counts_and_answers(engine: Path, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    assert call(engine, "--input_text", TEXT, "--compare_plain", "--json", str(path)) == 0
    report = read_report(path)
    check_schema(json.loads(SCHEMA.read_text()), json.loads(SCHEMA.read_text()), report)
    assert report["tool"] == "run"
    assert report["config"]["run"]["input_text"] == [TEXT]
    assert report["config"]["speculation"]["k"] == 3
    assert report["config"]["runtime"]["device"] == "cpu"
    assert report["config"]["build"]["max_seq_len"] == 256
    names = ["load", "prefill", "decode", "plain_prefill", "plain_decode"]
    assert [timing["name"] for timing in report["timings"]] == names
    (request,) = report["requests"]
    assert request["text"] == answer_text(engine, TEXT)
    assert (request["output_tokens"], request["finish_reason"]) == (24, "length")
    values = metric_values(report["metrics"])
    assert values["new_tokens"] == 24
    assert values["prompt_tokens"] == request["prompt_tokens"] == len(LLM(engine).encode_chat(TEXT))
    histogram = [values[f"verifications_accepting_{number}"] for number in range(4)]
    assert sum(histogram) == values["verifications"]
    assert sum(histogram[:3]) > 0
    assert sum(histogram[1:]) > 0
    assert values["answers_differing"] == 0
    assert values["speed_ratio"] > 0
    per_token = MODEL.kv_bytes_per_token(8)
    assert per_token * request["prompt_tokens"] < values["kv_read_per_token_plain"] < per_token * 256


def test_a_profile_is_a_trace_of_every_step(engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the run alone, not of what is compared with it; and a table of it."""
    path = tmp_path / "trace.json"
    assert call(engine, "--input_text", TEXT, "--profile", str(path), "--compare_plain") == 0
    events = json.loads(path.read_text())["traceEvents"]
    names = [event["name"] for event in events if event["ph"] == "X"]
    assert names.count("schedule") == names.count("step") == names.count("update") > 0
    assert not [event for event in events if event["name"] == "rows" and event["args"]["verify"] == 1]
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    table = lines[lines.index("profile") + 1 :]
    assert f"median of {names.count('step')} steps; p99" in table[0]
    assert [line.split()[0] for line in table[1:8]] == [*VERBS, "else"]
    assert table[-1].startswith("No kernels: a GPU's are recorded in 64 steps after the first 32 without prompts.")
    assert max(map(len, table)) <= run.FILE_WIDTH


def test_without_a_drafter_there_is_no_histogram(engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(engine, "--input_text", TEXT, "--drafter", "none", "--compare_plain") == 0
    out = capsys.readouterr().out
    assert "token for token" in out
    assert "verifications" not in out


@pytest.mark.parametrize("drafter", ["window", "ngram", "oracle"])
def test_every_drafter_is_summed_up(
    engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], drafter: str
) -> None:
    path = tmp_path / "report.json"
    flags = ("--drafter", drafter, "--compare_plain", "--json", str(path))
    assert call(engine, "--input_text", TEXT, "one", *flags) == 0
    out = capsys.readouterr().out
    assert "token for token" in out
    assert "verifications by accepted drafts" in out
    assert ("draft reads" in out) == (drafter != "ngram")
    assert 0 <= metric_values(read_report(path)["metrics"])["drafts_per_verification"] <= 3


def test_penalties_and_min_p_reach_the_model(engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = answer_text(engine, TEXT)
    for flags in (["--repetition_penalty", "1.9"], ["--presence_penalty", "2"], ["--frequency_penalty", "2"]):
        assert call(engine, "--input_text", TEXT, "--compare_plain", *flags) == 0
        assert not capsys.readouterr().out.startswith(plain)
    # Only the most likely token is left.
    assert call(engine, "--input_text", TEXT, "--temperature", "1", "--min_p", "1") == 0
    assert capsys.readouterr().out.startswith(plain)


def test_one_token_has_no_rate(engine: Path, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    assert call(engine, "--input_text", TEXT, "--max_output_len", "1", "--compare_plain", "--json", str(path)) == 0
    assert "tokens_per_second" not in metric_values(read_report(path)["metrics"])


def test_other_tokens_than_plain_decoding_are_an_error(
    engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A runtime that accepts every draft."""
    monkeypatch.setattr(torch_executor, "count_accepted", lambda block, _: block.num_drafts.clone())
    path = tmp_path / "report.json"
    assert call(engine, "--input_text", TEXT, "--compare_plain", "--json", str(path)) == 1
    out = capsys.readouterr().out
    assert "DIFFERENT" in out
    report = read_report(path)
    assert metric_values(report["metrics"])["answers_differing"] == 1
    place = int(metric_values(report["requests"][0]["metrics"])["first_difference"])
    assert f"answer 1 from token {place}" in out
    assert 0 < place < 24


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--input_text", "a", "--k", "0"], ["k must be at least 1", "found 0"]),
        (["--input_text", "a", "--k", "9"], ["max_draft_len 8", "found 9"]),
        (["--input_text", "a", "--ratio", "1.5"], ["ratio must be in (0, 1]", "found 1.5"]),
        (["--input_text", "a", "--max_batch_size", "5"], ["max_batch_size 4", "found 5"]),
        (["--input_text", "a", "--max_output_len", "0"], ["max_output_len must be at least 1", "found 0"]),
        (["--input_text", "a", "--num_return_sequences", "0"], ["num_return_sequences must be", "found 0"]),
        (["--input_text", "a", "--min_tokens", "25"], ["0..max_output_len 24", "found 25"]),
        (["--input_text", "a", "--random_seed", "-1"], ["random_seed must be in", "found -1"]),
        (["--input_text", "a", "--temperature", "-0.5"], ["temperature must be", "found -0.5"]),
        (["--input_text", "a", "--min_p", "1.5"], ["min_p must be in [0, 1]", "found 1.5"]),
        (["--input_text", "a", "--repetition_penalty", "0"], ["repetition_penalty must be in (0, 2]", "found 0.0"]),
        (["--input_text", "a", "--top_p", "0"], ["top_p must be in (0, 1]", "found 0.0"]),
        (["--input_text", "a", "--device", "abacus"], ["device must be auto, cpu, cuda or cuda:N", "'abacus'"]),
        (["--input_text", "a", "b", "--streaming"], ["streaming shows 1 answer, found 2"]),
        (["--input_text", "a", "--temperature", "1", "--compare_plain"], ["needs temperature 0, found 1.0"]),
        (["--input_text", "a", ""], ["input_text 2 is empty", "at least 1 character, found 0"]),
        ([], ["no prompt", "--input_text", "--input_file"]),
        (["--input_file", "{tmp}/none"], ["none: cannot be read: No such file"]),
        (["--input_file", "{tmp}/blank"], ["blank: the file is empty"]),
        (["--input_file", "{tmp}/latin1"], ["latin1: expected UTF-8 text, found byte 0xe9 at offset 3"]),
        (["--input_text", "a", "--engine_dir", "{tmp}/none"], ["none/config.json: missing"]),
        (["--input_text", "a", "--json", "{tmp}/none/report.json"], ["cannot write the report"]),
        (["--input_text", "a", "--profile", "{tmp}/none/trace.json"], ["none/trace.json: cannot write"]),
        (["--input_text", "a", "--profile_steps", "0"], ["profile_steps must be at least 1, found 0"]),
        (["--input_text", "a", "--profile_steps", "1001"], ["profile_steps must be at most 1000, found 1001"]),
        (["--input_text", "a", "--profile_after", "-1"], ["profile_after must be at least 0, found -1"]),
        (["--input_text", "a", "--profile", "trace.json", "--nvtx"], ["profile and nvtx: expected one"]),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], parts: list[str]
) -> None:
    (tmp_path / "blank").write_text(" \n")
    (tmp_path / "latin1").write_bytes("café".encode("latin-1"))
    assert call(engine, *(flag.replace("{tmp}", str(tmp_path)) for flag in flags)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert [part for part in parts if part not in error] == []


@pytest.mark.parametrize("flags", [["--nonsense"], ["--input_tex", "a"], ["--drafter", "x"], ["--k", "two"]])
def test_usage_errors_exit_with_2(engine: Path, flags: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        call(engine, *flags)
    assert stop.value.code == 2


def test_an_interrupt_cancels(
    engine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    steps, llms = [], []
    real_step = LLM.step

    def step(llm: LLM) -> object:
        llms.append(llm)
        steps.append(len(steps))
        if len(steps) == 6:
            raise KeyboardInterrupt
        return real_step(llm)

    monkeypatch.setattr(LLM, "step", step)
    assert call(engine, "--input_text", "one", "two") == 130
    assert capsys.readouterr().err.endswith("interrupted\n")
    assert len(steps) == 6
    assert not llms[0].has_requests


def test_runs_as_a_script_without_importing_torch_for_help_and_flag_errors(engine: Path) -> None:
    script = Path(run.__file__)
    command = [sys.executable, "-X", "importtime", str(script)]
    for flags, code in ((["--help"], 0), (["--engine_dir", str(engine)], 2)):
        done = subprocess.run([*command, *flags], capture_output=True, text=True, check=False)
        assert done.returncode == code
        imported = [line.rsplit("|", 1)[1].strip() for line in done.stderr.splitlines() if "|" in line]
        assert "rich.progress" in imported
        assert "torch" not in imported


def check_schema(schema: Mapping[str, Any], part: Mapping[str, Any], value: Any) -> None:
    """A report has exactly the keys of docs/report.schema.json, with values of its types."""
    if "$ref" in part:
        part = schema["$defs"][part["$ref"].removeprefix("#/$defs/")]
    kinds = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float)}
    assert isinstance(value, kinds[part["type"]])
    assert value == part.get("const", value)
    assert value in part.get("enum", [value])
    for item in value if part["type"] == "array" else ():
        check_schema(schema, part["items"], item)
    if "properties" in part:
        assert list(value) == list(part["properties"]) == part["required"]
        for key, inner in part["properties"].items():
            check_schema(schema, inner, value[key])
