"""LLM's behaviour towards its callers: stopping, several answers, log-probabilities, cancellation, bad requests."""

from __future__ import annotations

import pytest
import torch

from sparsespec.builder.errors import InputError, RequestError
from sparsespec.runtime.config import RuntimeConfig, SpeculationConfig
from sparsespec.runtime.llm import LLM
from sparsespec.runtime.outputs import OutputDelta
from sparsespec.runtime.sampling_params import SamplingParams
from tiny_llm import assert_all_pages_free, engine_of, first_answers, greedy, random_prompts, tiny_engine
from tiny_models import tiny_llama, tiny_model_config

SPECULATION = SpeculationConfig(k=4, min_budget=16)
PROMPT = random_prompts((40,))[0]


@pytest.fixture
def llm() -> LLM:
    return LLM(tiny_engine(), SPECULATION)


@pytest.fixture(scope="module")
def answer() -> tuple[int, ...]:
    return first_answers(LLM(tiny_engine(), SPECULATION).generate([PROMPT], greedy(40)))[0]


def test_length(llm: LLM, answer: tuple[int, ...]) -> None:
    for length in (1, 2, 5, 17, 40):
        output = llm.generate([PROMPT], greedy(length))[0].outputs[0]
        assert output.token_ids == answer[:length]
        assert output.finish_reason == "length"


def test_max_seq_len_ends_an_answer() -> None:
    llm = LLM(tiny_engine(), SPECULATION)
    prompt = random_prompts((250,))[0]
    output = llm.generate([prompt], greedy(100))[0].outputs[0]
    assert (len(output.token_ids), output.finish_reason) == (6, "length")
    assert_all_pages_free(llm)


def test_stop_token_ids(llm: LLM, answer: tuple[int, ...]) -> None:
    stop = answer[13]
    params = SamplingParams(max_tokens=40, temperature=0.0, ignore_eos=True, stop_token_ids=(stop,))
    output = llm.generate([PROMPT], params)[0].outputs[0]
    assert output.token_ids == answer[: answer.index(stop) + 1]
    assert (output.finish_reason, output.stop_reason) == ("stop", stop)


def test_end_of_sequence(answer: tuple[int, ...]) -> None:
    model = tiny_model_config(eos_token_ids=(answer[9],))
    llm = LLM(tiny_engine(model=model), SPECULATION)
    output = llm.generate([PROMPT], SamplingParams(max_tokens=40, temperature=0.0))[0].outputs[0]
    assert output.token_ids == answer[: answer.index(answer[9]) + 1]
    assert (output.finish_reason, output.stop_reason) == ("stop", None)
    assert first_answers(llm.generate([PROMPT], greedy(40))) == [answer]


@pytest.mark.parametrize("speculate", [True, False])
def test_min_tokens_is_the_first_place_for_the_end(speculate: bool, answer: tuple[int, ...]) -> None:
    """The end may come once min_tokens tokens are out: as the next one, and not before."""
    place = next(i for i in range(5, 40) if answer[i] not in answer[:i])
    llm = LLM(tiny_engine(model=tiny_model_config(eos_token_ids=(answer[place],))), SPECULATION)

    def run(min_tokens: int) -> tuple[int, ...]:
        params = SamplingParams(max_tokens=40, min_tokens=min_tokens, temperature=0.0, speculate=speculate)
        return first_answers(llm.generate([PROMPT], params))[0]

    assert run(place) == answer[: place + 1]
    assert run(place + 1)[:place] == answer[:place]
    assert run(place + 1)[place] != answer[place]


def test_min_tokens_holds_the_end_back(answer: tuple[int, ...]) -> None:
    """Speculation and plain decoding mask the same rows, so they agree on the tokens that replace the masked ones."""
    model = tiny_model_config(eos_token_ids=tuple(dict.fromkeys(answer[:3])))
    llm = LLM(tiny_engine(model=model), SPECULATION)
    outputs = [
        llm.generate([PROMPT], SamplingParams(max_tokens=60, min_tokens=20, temperature=0.0, speculate=speculate))[
            0
        ].outputs[0]
        for speculate in (True, False)
    ]
    assert outputs[0].token_ids == outputs[1].token_ids
    assert not any(token in model.eos_token_ids for token in outputs[0].token_ids[:20])
    assert len(outputs[0].token_ids) > 20


@pytest.mark.parametrize("speculate", [True, False])
def test_stop_text(llm: LLM, answer: tuple[int, ...], speculate: bool) -> None:
    text = llm.engine.codec.decode(answer)
    stop = text[11:14]
    params = SamplingParams(
        max_tokens=40, temperature=0.0, ignore_eos=True, stop=("never there", stop), speculate=speculate
    )
    output = llm.generate([PROMPT], params)[0].outputs[0]
    assert output.text == text[: text.index(stop)]
    assert (output.finish_reason, output.stop_reason) == ("stop", stop)
    assert stop in llm.engine.codec.decode(output.token_ids)
    assert stop not in llm.engine.codec.decode(output.token_ids[:-1])
    assert_all_pages_free(llm)


def test_streamed_text_is_the_text(llm: LLM) -> None:
    request_id = llm.add_request(PROMPT, SamplingParams(max_tokens=60, temperature=1.0, seed=3, ignore_eos=True))
    text, tokens = "", []
    while llm.is_running(request_id):
        for delta in llm.step():
            text += delta.text
            tokens += delta.token_ids
    output = llm.take_output(request_id).outputs[0]
    assert text == output.text == llm.engine.codec.decode(output.token_ids)
    assert tuple(tokens) == output.token_ids


def test_requests_of_every_kind_in_one_batch(llm: LLM) -> None:
    """What one request asks of sampling changes nothing for another."""
    kinds = [
        SamplingParams(max_tokens=30, temperature=0.0, ignore_eos=True),
        SamplingParams(max_tokens=30, temperature=0.9, seed=1, ignore_eos=True),
        SamplingParams(max_tokens=30, temperature=0.9, seed=2, top_k=4, top_p=0.8, ignore_eos=True),
        SamplingParams(max_tokens=30, temperature=1.3, seed=3, logprobs=2, min_tokens=20, speculate=False),
    ]
    request_ids = [llm.add_request(PROMPT, params) for params in kinds]
    while llm.has_requests:
        llm.step()
    for request_id, params in zip(request_ids, kinds, strict=True):
        alone = LLM(tiny_engine(), SPECULATION).generate([PROMPT], params)[0].outputs[0]
        together = llm.take_output(request_id).outputs[0]
        assert (together.token_ids, together.text) == (alone.token_ids, alone.text)
        assert len(together.logprobs) == len(alone.logprobs)


def test_the_device_stops_at_the_end_by_itself() -> None:
    """A host that is late goes on scheduling; pages are granted on the strength of this."""
    reads_everything = SpeculationConfig(k=3, min_budget=256, recent_share=1.0)
    llm = LLM(tiny_engine(), reads_everything, RuntimeConfig(result_lag=30))
    request_id = llm.add_request(PROMPT, greedy(6))
    while llm.has_requests:
        llm.step()
    verifications = llm.take_output(request_id).outputs[0].verifications
    assert [check.num_accepted for check in verifications] == [3, 3]  # two blocks of four would be eight new tokens
    memory = llm._executor.memory  # type: ignore[attr-defined]
    assert memory.state.kv_len.tolist() == memory.state.end_len.tolist() == [len(PROMPT) + 5, 0, 0, 0]


def test_several_answers(llm: LLM) -> None:
    params = SamplingParams(max_tokens=20, temperature=1.0, seed=10, n=6, ignore_eos=True)
    output = llm.generate([PROMPT], params)[0]
    assert [answer.index for answer in output.outputs] == list(range(6))
    assert len(dict.fromkeys(answer.token_ids for answer in output.outputs)) == 6
    alone = llm.generate([PROMPT], SamplingParams(max_tokens=20, temperature=1.0, seed=12, ignore_eos=True))
    assert output.outputs[2].token_ids == alone[0].outputs[0].token_ids


@pytest.mark.parametrize("speculate", [True, False])
def test_logprobs_are_transformers(speculate: bool) -> None:
    hf_model = tiny_llama(tiny_model_config()).double()
    llm = LLM(engine_of(hf_model, tiny_model_config()), SPECULATION)
    params = SamplingParams(max_tokens=30, temperature=0.9, seed=4, ignore_eos=True, logprobs=3, speculate=speculate)
    output = llm.generate([PROMPT], params)[0].outputs[0]
    with torch.inference_mode():
        logits = hf_model(torch.tensor([PROMPT + output.token_ids])).logits[0, len(PROMPT) - 1 : -1]
    expected = logits.log_softmax(dim=1)  # transformers rotates in fp32 even for an fp64 model
    assert [entry.token_id for entry in output.logprobs] == list(output.token_ids)
    for row, entry in zip(expected, output.logprobs, strict=True):
        assert entry.logprob == pytest.approx(float(row[entry.token_id]), abs=1e-5)
        assert [token for token, _ in entry.top] == row.topk(3).indices.tolist()
        assert [value for _, value in entry.top] == pytest.approx(row.topk(3).values.tolist(), abs=1e-5)


@pytest.mark.parametrize("steps", range(16))
def test_cancel_at_any_phase(steps: int, answer: tuple[int, ...]) -> None:
    llm = LLM(tiny_engine(), SPECULATION, RuntimeConfig(chunk_size=10, result_lag=2))
    cancelled, other = llm.add_request(PROMPT, greedy(40)), llm.add_request(PROMPT, greedy(40))
    for _ in range(steps):
        llm.step()
    llm.cancel(cancelled)
    output = llm.take_output(cancelled).outputs[0]
    assert output.finish_reason == "cancelled"
    assert output.token_ids == answer[: len(output.token_ids)]
    late = llm.add_request(PROMPT, greedy(40))  # takes the slot while results of its old owner are in flight
    while llm.has_requests:
        llm.step()
    assert llm.take_output(other).outputs[0].token_ids == answer
    assert llm.take_output(late).outputs[0].token_ids == answer
    assert_all_pages_free(llm)


def test_cancelling_shows_what_was_held_back(llm: LLM, answer: tuple[int, ...]) -> None:
    text = llm.engine.codec.decode(answer[:12])
    params = SamplingParams(max_tokens=40, temperature=0.0, ignore_eos=True, stop=(text + "never there",))
    request_id = llm.add_request(PROMPT, params)
    tokens: tuple[int, ...] = ()
    while len(tokens) < 5:
        tokens += tuple(token for delta in llm.step() for token in delta.token_ids)
    llm.cancel(request_id)
    output = llm.take_output(request_id).outputs[0]
    assert output.text == llm.engine.codec.decode(output.token_ids)


BAD_REQUESTS = [
    ((), greedy(4), "empty"),
    ((5,) * 256, greedy(4), "256 tokens.*max_seq_len 256"),
    ((5, 128), greedy(4), "128 is outside the vocabulary of 128"),
    ((5, -1), greedy(4), "-1 is outside the vocabulary"),
    ((5,), SamplingParams(stop_token_ids=(500,)), "500 is outside the vocabulary"),
]


@pytest.mark.parametrize(("prompt", "params", "message"), BAD_REQUESTS)
def test_bad_request_leaves_others_alone(
    prompt: tuple[int, ...], params: SamplingParams, message: str, llm: LLM, answer: tuple[int, ...]
) -> None:
    running = llm.add_request(PROMPT, greedy(40))
    llm.step()
    with pytest.raises(RequestError, match=message):
        llm.add_request(prompt, params)
    while llm.has_requests:
        llm.step()
    assert llm.take_output(running).outputs[0].token_ids == answer


def test_an_unknown_request_is_an_error(llm: LLM) -> None:
    for ask in (llm.cancel, llm.take_output, llm.is_running):
        with pytest.raises(RequestError, match="request 3 is unknown"):
            ask(3)


def test_generate_checks_all_prompts_first(llm: LLM) -> None:
    with pytest.raises(RequestError, match="empty"):
        llm.generate([PROMPT, ()], greedy(4))
    assert not llm.has_requests


def test_request_larger_than_the_kv_cache(answer: tuple[int, ...]) -> None:
    llm = LLM(tiny_engine(), SPECULATION, RuntimeConfig(max_tokens_in_paged_kv_cache=88))
    with pytest.raises(RequestError, match="need 124 tokens of KV cache, which holds 88"):
        llm.generate([PROMPT], greedy(80))
    assert first_answers(llm.generate([PROMPT], greedy(40))) == [answer]


def test_text_far_over_the_limit_is_refused_unread(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm.engine.codec, "encode", lambda _: pytest.fail("a hundred megabytes would be tokenized"))
    for ask in (llm.add_request, llm.encode_chat):
        with pytest.raises(RequestError, match="has 100000 characters, more than max_seq_len 256 tokens"):
            ask("x" * 100_000)


def test_text_that_is_not_unicode(llm: LLM) -> None:
    with pytest.raises(RequestError, match="cannot encode"):
        llm.add_request("\ud800x")


def test_an_interrupted_generate_leaves_nothing_running(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    step, steps = llm.step, []

    def interrupted() -> list[OutputDelta]:
        steps.append(len(steps))
        if len(steps) == 6:
            raise KeyboardInterrupt
        return step()

    monkeypatch.setattr(llm, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        llm.generate([PROMPT, PROMPT], greedy(40))
    assert not llm.has_requests
    assert_all_pages_free(llm)


def test_prompt_as_text(llm: LLM) -> None:
    text = "What is a pillar?"
    output = llm.generate(text, greedy(5))[0]
    assert output.prompt == text
    assert output.prompt_token_ids == tuple(llm.engine.codec.encode(text))
    assert llm.generate([output.prompt_token_ids], greedy(5))[0].outputs == output.outputs


@pytest.mark.parametrize(
    ("speculation", "config", "message"),
    [
        (SpeculationConfig(k=17), RuntimeConfig(chunk_size=100), "k .*max_draft_len 16.*found 17"),
        (SpeculationConfig(min_budget=300), RuntimeConfig(), "min_budget .*max_budget 256.*found 300"),
        (SpeculationConfig(), RuntimeConfig(max_batch_size=5), "max_batch_size .* 4, found 5"),
        (SpeculationConfig(), RuntimeConfig(chunk_size=8), "chunk_size .*9, found 8"),
    ],
)
def test_more_than_the_engine_was_built_for(
    speculation: SpeculationConfig, config: RuntimeConfig, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        LLM(tiny_engine(), speculation, config)
