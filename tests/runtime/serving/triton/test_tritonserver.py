"""A real tritonserver with the model repository of examples/, over a tiny engine."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from serving_study.triton_process import REPOSITORY, TritonServer, triton_server
from sparsespec.builder.build_config import BuildConfig
from sparsespec.runtime.config import SpeculationConfig
from sparsespec.runtime.llm import LLM
from sparsespec.runtime.outputs import RequestOutput
from sparsespec.runtime.sampling_params import SamplingParams
from sparsespec.runtime.text import ChatMessage
from tiny_models import tiny_model_config, write_tiny_engine

streams = pytest.importorskip("triton_streams", reason="needs the package tritonclient (`make test` installs it)")

pytestmark = [pytest.mark.tritonserver, pytest.mark.slow]

BUILD = BuildConfig(
    dtype="float64",
    max_batch_size=32,
    max_seq_len=1024,
    max_num_tokens=512,
    max_draft_len=8,
    max_budget=256,
    page_size=8,
)
PARAMETERS = {"k": "4", "min_budget": "64", "drain_timeout_s": "2"}
SPECULATION = SpeculationConfig(k=4, min_budget=64)
MOST_WAIT_S = 60
PROMPTS = tuple(f"Question {number}: {'why ' * (number % 7)}?" for number in range(64))
LONG = {"text_input": "Tell me all", "max_tokens": 900, "ignore_eos": True, "stream": True}


@dataclass(frozen=True)
class Engine:
    """A directory, and the same engine in this process."""

    directory: Path
    llm: LLM


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    directory = write_tiny_engine(tmp_path_factory.mktemp("engine") / "tiny", tiny_model_config(), BUILD, seed=0)
    return Engine(directory, LLM(directory, SPECULATION))


@pytest.fixture(scope="module")
def server(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    with triton_server(tmp_path_factory.mktemp("triton"), engine.directory, PARAMETERS) as running:
        yield running


@pytest.fixture(scope="module")
def narrow(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A server that answers one request at a time, and lets four in."""
    parameters = PARAMETERS | {"max_batch_size": "1", "max_requests": "4"}
    with triton_server(tmp_path_factory.mktemp("narrow"), engine.directory, parameters) as running:
        yield running


def post(server: TritonServer, path: str, body: Mapping[str, object]) -> tuple[int, str]:
    """Status and content."""
    request = urllib.request.Request(f"{server.http_url}/{path}", data=json.dumps(body).encode())
    try:
        with urllib.request.urlopen(request, timeout=MOST_WAIT_S) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def events(content: str) -> list[dict[str, object]]:
    """Of a stream of server-sent events."""
    return [json.loads(line.removeprefix("data: ")) for line in content.splitlines() if line]


def wait_for(server: TritonServer, condition: Callable[[dict[str, float]], bool]) -> dict[str, float]:
    """The server's metrics, as soon as they are so."""
    deadline = time.monotonic() + MOST_WAIT_S
    while True:
        metrics = server.metrics()
        if condition(metrics):
            return metrics
        assert time.monotonic() < deadline, metrics
        time.sleep(0.1)


def is_idle(metrics: dict[str, float]) -> bool:
    return metrics["sparsespec_kv_cache_usage"] == 0 and metrics["sparsespec_answers_running"] == 0


def wait_for_waiting(server: TritonServer, count: int) -> None:
    wait_for(server, lambda metrics: metrics["sparsespec_answers_waiting"] == count)


def offline(engine: Engine, prompt: str, params: SamplingParams) -> RequestOutput:
    (output,) = engine.llm.generate(prompt, params)
    return output


def together(engine: Engine, prompts: Sequence[str], params: Sequence[SamplingParams]) -> list[RequestOutput]:
    """Offline, in one batch."""
    ids = [engine.llm.add_request(prompt, each) for prompt, each in zip(prompts, params, strict=True)]
    for _ in engine.llm.run(ids):
        pass
    return [engine.llm.take_output(number) for number in ids]


SAMPLED = SamplingParams(max_tokens=24, temperature=0.7, top_k=40, top_p=0.9, seed=7)
GREEDY = SamplingParams(max_tokens=24, temperature=0.0)
ASKED: list[tuple[dict[str, object], SamplingParams]] = [
    ({"max_tokens": 24}, GREEDY),
    ({"max_tokens": 24, "temperature": 0.7, "top_k": 40, "top_p": 0.9, "seed": 7}, SAMPLED),
]


@pytest.mark.parametrize(("asked", "params"), ASKED)
def test_generate_is_what_the_engine_answers_offline(
    server: TritonServer, engine: Engine, asked: dict[str, object], params: SamplingParams
) -> None:
    status, content = post(server, "generate", {"text_input": PROMPTS[3], **asked})
    answer = json.loads(content)
    expected = offline(engine, PROMPTS[3], params)
    assert status == 200, content
    assert answer["text_output"] == expected.outputs[0].text
    assert tuple(answer["output_ids"]) == expected.outputs[0].token_ids
    assert answer["finish_reason"] == expected.outputs[0].finish_reason
    assert answer["num_input_tokens"] == len(expected.prompt_token_ids)
    assert answer["total_draft_tokens"] == sum(check.num_drafts for check in expected.outputs[0].verifications) > 0


@pytest.mark.parametrize(("asked", "params"), ASKED)
def test_generate_stream_sends_what_is_added(
    server: TritonServer, engine: Engine, asked: dict[str, object], params: SamplingParams
) -> None:
    _, content = post(server, "generate_stream", {"text_input": PROMPTS[4], "stream": True, **asked})
    found = events(content)
    assert len(found) > 2
    assert "".join(str(event["text_output"]) for event in found) == offline(engine, PROMPTS[4], params).outputs[0].text
    assert found[-1]["num_output_tokens"] == 24


def test_clients_of_tensorrt_llm_are_understood(server: TritonServer, engine: Engine) -> None:
    """What they always send, and the answer after its prompt where they ask for it."""
    body = {
        "text_input": PROMPTS[5],
        "max_tokens": 10,
        "bad_words": "",
        "stop_words": "",
        "pad_id": 2,
        "end_id": -1,
        "top_k": 1,
        "top_p": 0.0,
        "beam_width": 1,
        "return_context_logits": False,
        "exclude_input_in_output": False,
    }
    _, content = post(server, "generate", body)
    expected = offline(engine, PROMPTS[5], SamplingParams(max_tokens=10, temperature=0.0, ignore_eos=True))
    assert json.loads(content)["text_output"] == PROMPTS[5] + expected.outputs[0].text


def test_a_chat_goes_through_the_template(server: TritonServer, engine: Engine) -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    _, content = post(server, "generate", {"messages": json.dumps(messages), "max_tokens": 8})
    prompt = [ChatMessage("user", "hi"), ChatMessage("assistant", "yes")]
    (expected,) = engine.llm.generate([prompt], SamplingParams(max_tokens=8, temperature=0.0))
    assert json.loads(content)["text_output"] == expected.outputs[0].text


def test_the_example_client_streams_an_answer(server: TritonServer, engine: Engine) -> None:
    command = [sys.executable, str(REPOSITORY.parent / "triton_client.py"), "One?", server.grpc_address]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    (expected,) = engine.llm.generate([[ChatMessage("user", "One?")]], SamplingParams(max_tokens=64, temperature=0.0))
    assert output.startswith(expected.outputs[0].text + "\n")
    assert re.search(r"\n\d+ of [1-9]\d* drafts accepted\n$", output)


def test_several_answers_and_their_log_probabilities(server: TritonServer, engine: Engine) -> None:
    asked = {"max_tokens": 12, "temperature": 1.0, "seed": 3, "num_return_sequences": 3, "return_log_probs": True}
    answer = streams.GrpcStream(server.grpc_address).ask({"text_input": PROMPTS[6], **asked}).rest()
    params = SamplingParams(max_tokens=12, temperature=1.0, seed=3, n=3, logprobs=0)
    expected = offline(engine, PROMPTS[6], params).outputs
    assert [text.decode() for text in answer.arrays("text_output")[0]] == [each.text for each in expected]
    rows = answer.arrays("output_log_probs")[0]
    for row, each in zip(rows, expected, strict=True):
        assert row[: len(each.token_ids)] == pytest.approx([token.logprob for token in each.logprobs], rel=1e-5)
    assert answer.arrays("cum_log_probs")[0] == pytest.approx(rows.sum(axis=1), rel=1e-5)


def test_64_streams_share_a_batch_and_none_is_mixed_up(server: TritonServer, engine: Engine) -> None:
    before = wait_for(server, is_idle)
    asked = [
        {"text_input": prompt, "max_tokens": 64, "ignore_eos": True, "temperature": number % 2, "seed": number}
        for number, prompt in enumerate(PROMPTS)
    ]
    began = [streams.GrpcStream(server.grpc_address).ask({"stream": True, **values}) for values in asked]
    answers = [stream.rest() for stream in began]
    after = wait_for(server, is_idle)
    plain = SamplingParams(max_tokens=64, ignore_eos=True)
    params = [replace(plain, temperature=float(number % 2), seed=number) for number in range(64)]
    expected = together(engine, PROMPTS, params)
    assert [answer.error for answer in answers] == [None] * 64
    assert [answer.token_ids for answer in answers] == [output.outputs[0].token_ids for output in expected]
    assert [answer.text for answer in answers] == [output.outputs[0].text for output in expected]
    total, steps = (
        after[f"sparsespec_batch_size_{kind}"] - before[f"sparsespec_batch_size_{kind}"] for kind in ("sum", "count")
    )
    assert total / steps > 16


def test_a_late_joiner_is_answered_while_others_run(server: TritonServer) -> None:
    with streams.running(server.grpc_address, [LONG] * 4):
        answer = streams.GrpcStream(server.grpc_address).ask({**LONG, "max_tokens": 5}).rest()
        assert len(answer.token_ids) == 5
        wait_for(server, lambda metrics: metrics["sparsespec_answers_running"] == 4)


def test_clients_that_leave_free_their_pages(server: TritonServer) -> None:
    cancelled = 'sparsespec_requests_total{outcome="cancelled"}'
    before = wait_for(server, is_idle)[cancelled]
    with streams.running(server.grpc_address, [LONG] * 3):
        wait_for(server, lambda metrics: metrics["sparsespec_kv_cache_usage"] > 0)
    assert wait_for(server, is_idle)[cancelled] == before + 3


def test_who_leaves_before_a_token_came_waits_no_longer(narrow: TritonServer) -> None:
    with streams.running(narrow.grpc_address, [LONG]):
        waiting = streams.GrpcStream(narrow.grpc_address).ask(LONG)
        wait_for_waiting(narrow, 1)
        waiting.close(cancel=True)
        wait_for_waiting(narrow, 0)
        assert narrow.metrics()["sparsespec_answers_running"] == 1


def test_the_lowest_priority_is_let_in_first(narrow: TritonServer) -> None:
    wait_for(narrow, is_idle)
    with streams.running(narrow.grpc_address, [LONG]):
        for number, priority in enumerate((2, 0, 1), start=1):
            values = {"text_input": "Now", "max_tokens": 2, "priority": priority}
            streams.GrpcStream(narrow.grpc_address).ask(values, request_id=f"priority-{priority}")
            wait_for_waiting(narrow, number)
    wait_for(narrow, lambda metrics: is_idle(metrics) and metrics["sparsespec_answers_waiting"] == 0)
    ended = [json.loads(line) for line in narrow.log.splitlines() if '"priority-' in line]
    assert [line["request_id"] for line in ended] == ["priority-0", "priority-1", "priority-2"]


def test_too_many_are_refused(narrow: TritonServer) -> None:
    wait_for(narrow, is_idle)
    with streams.running(narrow.grpc_address, [LONG]):
        others = [streams.GrpcStream(narrow.grpc_address).ask(LONG) for _ in range(3)]
        wait_for_waiting(narrow, 3)
        status, content = post(narrow, "generate", {"text_input": "One more"})
        for other in others:
            other.close(cancel=True)
    assert status == 400  # as Triton's HTTP says of every error of a model; gRPC clients see which kind it is
    assert "4 answers run or wait, of at most 4" in content


def test_a_time_limit_ends_its_request_alone(server: TritonServer) -> None:
    limited = streams.GrpcStream(server.grpc_address).ask(LONG, timeout_us=500_000)
    other = streams.GrpcStream(server.grpc_address).ask({**LONG, "max_tokens": 200})
    assert "0.5" in str(limited.rest().error)
    assert len(other.rest().token_ids) == 200
    _, content = post(server, "generate", {**LONG, "stream": False, "timeout_s": 0.2})
    assert "0.2" in content


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"text_input": ""}, "text_input must not be empty"),
        ({"max_tokens": 5}, "expected one of text_input, messages, input_ids, found none"),
        ({"text_input": [b"\xff\xfe"]}, "text_input must be UTF-8"),
        ({"text_input": "a" * 1500}, "over max_seq_len 1024"),
        ({"text_input": "a", "beam_width": 4}, "beam_width must be 1 (there is no beam search), found 4"),
        ({"text_input": "a", "bad_words": ["b"]}, "bad_words must be empty (words cannot be forbidden), found ['b']"),
        ({"text_input": "a", "temperature": -1.0}, "temperature must be in 0..1000, found -1.0"),
        ({"text_input": "a", "seed": 2**63}, "seed must be in 0..2^63 - 1, found 9223372036854775808"),
        ({"text_input": ["a", "b"]}, "Expected [-1,1], got [1,2]"),
        ({"input_ids": [5, 4000]}, "4000"),
        ({"messages": "[{}]"}, "messages[0]: missing key 'role'"),
    ],
)
def test_a_bad_request_is_told_why_and_takes_no_other_along(
    server: TritonServer, values: dict[str, object], message: str
) -> None:
    with streams.running(server.grpc_address, [{**LONG, "max_tokens": 60}]) as (other,):
        assert message in str(streams.GrpcStream(server.grpc_address).ask(values).rest().error)
        assert other.rest().error is None


def test_a_wrong_type_is_refused(server: TritonServer) -> None:
    wrong = streams.make_input("max_tokens", [5.0], "FP32")
    answer = streams.GrpcStream(server.grpc_address).ask({"text_input": "a", "max_tokens": wrong}).rest()
    assert "data-type is 'FP32', but model 'sparsespec' expects 'INT32'" in str(answer.error)
    status, content = post(server, "generate", {"text_input": "a", "max_tokens": "five"})
    assert status == 500
    assert "non-signed-integer" in content


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"colour": "red"}, "parameters: unknown key 'colour'; expected one of engine_dir"),
        ({"k": "eight"}, "parameters: k: expected int, found 'eight'"),
        ({"max_requests": "0"}, "parameters: max_requests must be at least 1, found 0"),
    ],
)
def test_a_bad_parameter_keeps_the_model_from_loading(
    engine: Engine, tmp_path: Path, parameters: dict[str, str], message: str
) -> None:
    with pytest.raises(RuntimeError) as error, triton_server(tmp_path, engine.directory, parameters):
        pass
    assert message in str(error.value)


def test_a_server_ends_well_under_load_and_serves_again(engine: Engine, tmp_path: Path) -> None:
    with triton_server(tmp_path / "first", engine.directory, PARAMETERS, exit_timeout_s=20) as first:
        began = [streams.GrpcStream(first.grpc_address).ask(LONG) for _ in range(40)]
        began += [streams.GrpcStream(first.grpc_address).ask({**LONG, "max_tokens": 4}) for _ in range(4)]
        wait_for(first, lambda metrics: metrics["sparsespec_answers_running"] == 32)
        first.ask_to_stop()
        answers = [stream.rest() for stream in began]
        assert first.process.wait(MOST_WAIT_S) == 0
    assert all(answer.error is None or "the server is shutting down" in answer.error for answer in answers)
    assert any(answer.error is not None for answer in answers)
    with triton_server(tmp_path / "second", engine.directory, PARAMETERS) as second:
        _, content = post(second, "generate", {"text_input": PROMPTS[0], "max_tokens": 24})
        assert json.loads(content)["text_output"] == offline(engine, PROMPTS[0], GREEDY).outputs[0].text


def test_a_server_that_is_stopped_alone_waits_for_its_streams(engine: Engine, tmp_path: Path) -> None:
    """Where only tritonserver is told, the model learns nothing of it."""
    with triton_server(tmp_path, engine.directory, PARAMETERS) as server:
        stream = streams.GrpcStream(server.grpc_address).ask({**LONG, "max_tokens": 100})
        stream.next()
        server.process.send_signal(signal.SIGTERM)
        assert stream.rest().error is None
        assert server.process.wait(MOST_WAIT_S) == 0
