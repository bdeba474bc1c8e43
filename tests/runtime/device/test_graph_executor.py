"""Steps of fixed shapes against steps of varying shapes: the same tokens, on the CPU in float64 bit for bit."""

from __future__ import annotations

import weakref
from dataclasses import replace

import pytest

from fake_plugins import FakeLibrary
from sparsespec.builder.errors import InputError
from sparsespec.runtime.collector import collector_held
from sparsespec.runtime.config import CouplingName, GraphsName, RuntimeConfig, SpeculationConfig
from sparsespec.runtime.device import step_choice, torch_executor
from sparsespec.runtime.device.graph_executor import GraphExecutor
from sparsespec.runtime.device.plugin_ops import PluginAttention
from sparsespec.runtime.device.torch_executor import TorchExecutor
from sparsespec.runtime.llm import LLM
from sparsespec.runtime.outputs import CompletionOutput, RequestOutput
from sparsespec.runtime.sampling_params import MAX_LOGPROBS, SamplingParams
from tiny_llm import (
    BUILD,
    DraftCounts,
    assert_all_pages_free,
    first_answers,
    greedy,
    random_prompts,
    tiny_engine,
    ways_to_draft,
)

BUDGET = 16
SPECULATION = SpeculationConfig(k=4, ratio=0.1, min_budget=BUDGET, max_lookups=8)
RULES = ways_to_draft(SPECULATION) | {"none": SpeculationConfig(drafter="none"), "long": replace(SPECULATION, k=16)}
FIXED = {name: rule for name, rule in RULES.items() if name not in ("last", "accepted", "average")}
# More than there are slots, so that some wait and slots change hands; one a single token.
PROMPTS = random_prompts((37, 80, 1, 61, 90, 30))
SAMPLED = SamplingParams(max_tokens=40, temperature=0.8, seed=3, ignore_eos=True)

CUT = replace(SAMPLED, temperature=1.5, top_k=20, top_p=0.95)  # the random model is sure of its tokens


def generate(rule: str, config: RuntimeConfig, params: SamplingParams) -> list[RequestOutput]:
    llm = LLM(tiny_engine(), RULES[rule], config)
    outputs = llm.generate(PROMPTS, params)
    assert_all_pages_free(llm)
    return outputs


@pytest.mark.parametrize("params", [greedy(40), SAMPLED, CUT], ids=["greedy", "sampled", "cut"])
@pytest.mark.parametrize(("rule", "policy"), [*((rule, "unified") for rule in FIXED), ("default", "lockstep")])
def test_tokens_are_those_of_steps_of_varying_shapes(rule: str, policy: str, params: SamplingParams) -> None:
    config = RuntimeConfig(chunk_size=32, policy=policy, cuda_graphs="off")  # type: ignore[arg-type]
    expected = generate(rule, config, params)
    found = generate(rule, replace(config, cuda_graphs="on"), params)
    assert first_answers(found) == first_answers(expected)
    assert DraftCounts.of(found) == DraftCounts.of(expected)
    if rule not in ("none", "ngram"):
        assert DraftCounts.of(found).longest_context > BUDGET
        assert DraftCounts.of(found).accepted > 0
        assert DraftCounts.of(found).rejected > 0


@pytest.mark.parametrize(
    "cuts",
    [
        {"top_k": 1},
        {"top_k": 1000},
        {"top_k": 7},
        {"top_p": 0.9},
        {"top_p": 1e-6},
        {"min_p": 0.05},
        {"min_p": 1.0},
        {"min_p": 0.01, "top_k": 30, "top_p": 0.8},
    ],
    ids=str,
)
def test_cuts_run_in_fixed_shapes(cuts: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    params = replace(CUT, **{"top_k": 0, "top_p": 1.0, **cuts})  # type: ignore[arg-type]
    expected = generate("default", RuntimeConfig(chunk_size=32, cuda_graphs="off"), params)
    monkeypatch.setattr(TorchExecutor, "prepare", None)  # what steps of varying shapes begin with
    assert first_answers(generate("default", RuntimeConfig(chunk_size=32, cuda_graphs="on"), params)) == first_answers(
        expected
    )


@pytest.mark.parametrize("lag", [0, 1, 5])
def test_tokens_do_not_depend_on_when_the_host_learns_of_them(lag: int) -> None:
    config = RuntimeConfig(chunk_size=32, cuda_graphs="on")
    expected = generate("default", config, SAMPLED)
    assert first_answers(generate("default", replace(config, result_lag=lag), SAMPLED)) == first_answers(expected)


MANY_WISHES = (
    greedy(30),
    replace(SAMPLED, top_p=0.8, max_tokens=20, logprobs=MAX_LOGPROBS),
    replace(SAMPLED, repetition_penalty=1.3, frequency_penalty=0.3, max_tokens=15),
    replace(SAMPLED, max_tokens=30, min_tokens=28, ignore_eos=False),
    replace(greedy(25), logprobs=2, presence_penalty=0.4),
    replace(SAMPLED, speculate=False, max_tokens=60),
)


def answers(speculation: SpeculationConfig, config: RuntimeConfig) -> list[CompletionOutput]:
    """Of requests that want different things and run together."""
    llm = LLM(tiny_engine(), speculation, config)
    ids = [llm.add_request(prompt, params) for prompt, params in zip(PROMPTS, MANY_WISHES, strict=True)]
    for _ in llm.run(ids):
        pass
    return [llm.take_output(each).outputs[0] for each in ids]


@pytest.mark.parametrize("coupling", ["rejection", "gumbel"])
def test_wishes_run_in_fixed_shapes(coupling: CouplingName, monkeypatch: pytest.MonkeyPatch) -> None:
    """Penalties, minimum lengths and log-probabilities, beside requests without; rows of padding count for nobody."""
    speculation = replace(SPECULATION, coupling=coupling)
    expected = answers(speculation, RuntimeConfig(chunk_size=32, cuda_graphs="off"))
    monkeypatch.setattr(TorchExecutor, "prepare", None)
    found = answers(speculation, RuntimeConfig(chunk_size=32, cuda_graphs="on"))
    assert [each.token_ids for each in found] == [each.token_ids for each in expected]
    for mine, theirs in zip(found, expected, strict=True):
        assert len(mine.logprobs) == len(theirs.logprobs)
        for one, other in zip(mine.logprobs, theirs.logprobs, strict=True):
            assert (one.token_id, one.logprob) == (other.token_id, pytest.approx(other.logprob, abs=1e-9))
            assert [token for token, _ in one.top] == [token for token, _ in other.top]
            assert one.logprob in [value for token, value in one.top if token == one.token_id] or len(one.top) == 2
    assert sum(len(each.logprobs) for each in found) == 25 + 20


def test_a_step_may_grant_all_pages_of_many_prompts_and_what_verifications_write_beyond() -> None:
    """Pages are smaller than a verification, and the prompts fill the step."""
    prompts = random_prompts((40, 40, 40, 40))
    config = RuntimeConfig(chunk_size=160, cuda_graphs="on")
    outputs = LLM(tiny_engine(), RULES["long"], config).generate(prompts, greedy(20))
    plain = LLM(tiny_engine(), RULES["none"], config).generate(prompts, greedy(20))
    assert first_answers(outputs) == first_answers(plain)


def test_a_cancelled_request_leaves_its_slot_to_others() -> None:
    llm = LLM(tiny_engine(), SPECULATION, RuntimeConfig(cuda_graphs="on", result_lag=3))
    ids = [llm.add_request(prompt, greedy(40)) for prompt in PROMPTS]
    for _ in range(12):
        llm.step()
    llm.cancel(ids[0])
    for _ in llm.run(ids[1:]):
        pass
    expected = first_answers(generate("default", RuntimeConfig(cuda_graphs="off"), greedy(40)))
    assert [llm.take_output(each).outputs[0].token_ids for each in ids[1:]] == expected[1:]
    assert_all_pages_free(llm)


@pytest.mark.parametrize("rule", ["last", "accepted", "average"])
def test_rules_that_compute_planes_of_their_own_have_no_fixed_shapes(rule: str) -> None:
    with pytest.raises(InputError, match="cuda_graphs: expected a drafter"):
        LLM(tiny_engine(), RULES[rule], RuntimeConfig(cuda_graphs="on"))


def test_auto_is_off_without_plugins() -> None:
    assert not isinstance(LLM(tiny_engine(), SPECULATION).executor, GraphExecutor)


def test_no_graph_is_captured_without_a_gpu() -> None:
    llm = LLM(tiny_engine(), SPECULATION, RuntimeConfig(cuda_graphs="on"))
    llm.generate(PROMPTS[:2], greedy(8))
    assert isinstance(llm.executor, GraphExecutor)
    assert llm.executor.graphs.num_captured == 0


@pytest.mark.parametrize("cuda_graphs", ["on", "off"])
def test_an_llms_memory_goes_with_its_last_reference(cuda_graphs: GraphsName) -> None:
    """Without a collection, which would let a KV cache of many GB outlive its LLM."""
    with collector_held():
        llm = LLM(tiny_engine(), SPECULATION, RuntimeConfig(cuda_graphs=cuda_graphs))
        llm.generate(PROMPTS[:2], greedy(8))
        executor = llm.executor
        assert isinstance(executor, GraphExecutor | TorchExecutor)
        memory = weakref.ref(executor.memory)
        del llm, executor
        assert memory() is None


def test_a_vocabulary_that_the_kernels_do_not_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    """auto leaves steps as they are, on says why not."""
    made = FakeLibrary()
    monkeypatch.setattr(torch_executor, "choose_attention", lambda *_: PluginAttention(made))
    monkeypatch.setattr(step_choice, "MAX_VOCAB_SIZE", 127)
    engine = tiny_engine(3, replace(BUILD, dtype="bfloat16"))
    assert not isinstance(LLM(engine, SPECULATION).executor, GraphExecutor)
    with pytest.raises(InputError, match="at most 127 tokens, found 128"):
        LLM(engine, SPECULATION, RuntimeConfig(cuda_graphs="on"))
