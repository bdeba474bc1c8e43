"""The session over engines that run the torch lowering on the addresses they are bound to: tests/fake_tensorrt.py."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from fake_tensorrt import BUILT, FakeTensorRT, Faults, fake_engines
from sparsespec.builder.build_config import KvCacheDType
from sparsespec.builder.errors import BackendError, EngineError, InputError
from sparsespec.builder.model_config import Family
from sparsespec.builder.trt.engine_io import UPDATED, row_bucket
from sparsespec.runtime.config import Policy, RuntimeConfig, SpeculationConfig
from sparsespec.runtime.device.drafter import make_drafter
from sparsespec.runtime.device.executor_config import ExecutorConfig
from sparsespec.runtime.device.step_batch import StepMemory
from sparsespec.runtime.device.torch_executor import make_memory
from sparsespec.runtime.llm import LLM
from sparsespec.runtime.loading import LoadedEngine
from sparsespec.runtime.outputs import RequestOutput
from sparsespec.runtime.sampling_params import SamplingParams
from sparsespec.runtime.trt.engines import EngineSource, load_engines
from sparsespec.runtime.trt.session import TensorRTSession
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
from tiny_models import tiny_model_config

SPECULATION = SpeculationConfig(k=4, ratio=0.2, min_budget=12)
CONFIG = RuntimeConfig(device="cpu", chunk_size=24)
PROMPTS = random_prompts((90, 61, 40, 1))


@dataclass(frozen=True)
class Case:
    """A model, who drafts, and how it is scheduled."""

    family: Family = "llama"
    speculation: SpeculationConfig = SPECULATION
    config: RuntimeConfig = CONFIG
    kv_cache_dtype: KvCacheDType = "auto"

    def torch_engine(self) -> LoadedEngine:
        build = replace(BUILD, dtype="float32", kv_cache_dtype=self.kv_cache_dtype)
        return tiny_engine(build=build, model=tiny_model_config(family=self.family))

    def tensorrt(self, faults: Faults | None = None) -> FakeTensorRT:
        """Engines that leave the scores which the drafter needs."""
        planes = make_drafter(self.speculation).needs.score_planes
        built = replace(BUILT, score_normalizer=self.speculation.score_normalizer)
        built = built if planes == "none" else replace(built, score_planes=planes)
        return FakeTensorRT(replace(self.torch_engine().config, tensorrt=built), faults=faults or Faults())

    def tensorrt_engine(self, directory: Path, trt: FakeTensorRT) -> LoadedEngine:
        return replace(self.torch_engine(), config=trt.config, engines=fake_engines(directory, trt))

    def decode(self, engine: LoadedEngine, params: SamplingParams) -> list[RequestOutput]:
        """Everything in one batch, and two requests that do not speculate."""
        llm = LLM(engine, self.speculation, self.config)
        outputs = llm.generate(PROMPTS, params) + llm.generate(PROMPTS[:2], replace(params, speculate=False))
        assert_all_pages_free(llm)
        return outputs


def same_tokens(case: Case, directory: Path, params: SamplingParams) -> tuple[FakeTensorRT, list[RequestOutput]]:
    """What TensorRT's engines answer, having compared it with the torch executor's answers."""
    trt = case.tensorrt()
    found = case.decode(case.tensorrt_engine(directory, trt), params)
    assert first_answers(found) == first_answers(case.decode(case.torch_engine(), params))
    return trt, found


@pytest.mark.parametrize(
    "family", ["llama", *(pytest.param(family, marks=pytest.mark.slow) for family in ("qwen2", "qwen3"))]
)
@pytest.mark.parametrize("policy", ["unified", "lockstep"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_whole_generation_gives_the_torch_executors_tokens(
    tmp_path: Path, family: Family, policy: Policy, temperature: float
) -> None:
    case = Case(family, config=replace(CONFIG, policy=policy))
    params = SamplingParams(max_tokens=24, temperature=temperature, seed=5, ignore_eos=True)
    trt, outputs = same_tokens(case, tmp_path, params)
    counts = DraftCounts.of(outputs)
    assert counts.accepted > 0
    assert counts.rejected > 0
    assert counts.longest_context > SPECULATION.budget(counts.longest_context)
    assert sorted({kind for kind, _, _ in trt.runs}) == ["draft", "verify"]


@pytest.mark.parametrize("way", ways_to_draft(SPECULATION))
def test_every_way_to_draft(tmp_path: Path, way: str) -> None:
    case = Case(speculation=ways_to_draft(SPECULATION)[way])
    _, outputs = same_tokens(case, tmp_path, greedy(32))
    assert DraftCounts.of(outputs).rejected > 0


def test_an_fp8_kv_cache(tmp_path: Path) -> None:
    """Logits keep the type of the model."""
    case = Case(kv_cache_dtype="fp8")
    _, outputs = same_tokens(case, tmp_path, greedy(32))
    assert DraftCounts.of(outputs).rejected > 0
    assert first_answers(outputs) != first_answers(case.decode(Case().torch_engine(), greedy(32)))


def test_plain_decoding_runs_on_engines_built_for_scores(tmp_path: Path) -> None:
    trt, _ = same_tokens(Case(speculation=SpeculationConfig(drafter="none")), tmp_path, greedy(12))
    assert [kind for kind, _, _ in trt.runs] == ["verify"] * len(trt.runs)


def test_steps_of_drafts_alone_run_on_the_draft_engine_and_all_others_do_not(tmp_path: Path) -> None:
    case = Case(config=replace(CONFIG, policy="lockstep"))
    trt = case.tensorrt()
    llm = LLM(case.tensorrt_engine(tmp_path, trt), case.speculation, case.config)
    llm.add_request(PROMPTS[1], greedy(10))
    while llm.has_requests:
        llm.step()
    prefill = [("verify", 24), ("verify", 24), ("verify", 13)]
    cycle = [("draft", 1)] * SPECULATION.k + [("verify", SPECULATION.k + 1)]
    steps = [(kind, rows) for kind, _, rows in trt.runs]
    assert steps[: 3 + len(cycle)] == prefill + cycle
    assert len(steps) > 3 + len(cycle)


def test_the_profile_for_prompts_is_taken_only_where_rows_need_it(tmp_path: Path) -> None:
    """160 rows is the largest step, 4 * 17 the largest without a prompt's chunk."""
    case = Case(config=replace(CONFIG, chunk_size=160))
    trt = case.tensorrt()
    LLM(case.tensorrt_engine(tmp_path, trt), case.speculation, case.config).generate(PROMPTS, greedy(6))
    verified = [(profile, rows) for kind, profile, rows in trt.runs if kind == "verify"]
    assert [profile for profile, _ in verified] == [int(rows > 68) for _, rows in verified]
    assert sorted({profile for profile, _ in verified}) == [0, 1]


def test_both_engines_share_weights_kv_and_activation_memory(tmp_path: Path) -> None:
    trt, _ = same_tokens(Case(), tmp_path, greedy(12))
    draft, *others = sorted(trt.contexts, key=lambda context: context.engine.kind)
    assert others
    for context in others:
        shared = [name for name in draft.addresses if name in context.addresses]
        assert len(shared) == len(draft.addresses)
        assert [draft.addresses[name] for name in shared] == [context.addresses[name] for name in shared]
        assert context.device_memory == draft.device_memory
    assert draft.device_memory is not None
    assert draft.device_memory[1] == 2 * 3 * 4096  # the largest of both engines' profiles
    for context in trt.contexts:
        updated = [name for name in context.addresses if name.endswith(UPDATED)]
        assert len(updated) == 2 * (2 if context.engine.kind == "draft" else 3)
        assert all(context.addresses[name] == context.addresses[name.removesuffix(UPDATED)] for name in updated)


def test_what_is_bound_is_what_the_engines_declare(tmp_path: Path) -> None:
    trt, _ = same_tokens(Case("qwen3"), tmp_path, greedy(12))
    for context in trt.contexts:
        assert sorted(context.addresses) == sorted(context.engine.tensors)
        assert sorted(context.shapes) == sorted(name for name, each in context.engine.inputs.items() if each.is_dynamic)


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        (
            Faults(corrupt="draft"),
            r"draft.engine: TensorRT 11.4.0.106 does not take this engine: the magic tag",
        ),
        (Faults(missing_tensor="layers.1.kv_pool"), r"draft.engine: layers.1.kv_pool: expected a tensor, found none"),
        (
            Faults(shapes={"page_table": (-1, 3)}),
            r"page_table: expected shape \[-1, 35\], found \[-1, 3\]",
        ),
        (Faults(types={"logit_rows": "int32"}), r"verify.engine: logit_rows: expected INT64, found INT32"),
        (Faults(host_tensor="phase"), "draft.engine: phase: expected memory of the device, found HOST"),
        (
            Faults(most_rows=16),
            r"token_ids in profile 0: expected .*\[68\]\], found .*\[16\]\]",
        ),
    ],
    ids=["corrupt", "missing", "shape", "type", "host", "profile"],
)
def test_engines_that_differ_from_their_config_are_refused(tmp_path: Path, faults: Faults, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        fake_engines(tmp_path, Case().tensorrt(faults))


def test_an_engine_file_that_is_not_there(tmp_path: Path) -> None:
    trt = Case().tensorrt()
    (tmp_path / "draft.engine").write_bytes(b"draft")
    source = EngineSource(tmp_path, trt.config, tmp_path / "none.so", torch.device("cpu"))
    with pytest.raises(EngineError, match=r"verify\.engine: cannot be read"):
        load_engines(trt, source)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        (Faults(no_context=True), "verify.engine: TensorRT refused an execution context: no memory for a context"),
        (
            Faults(refused_shape="token_ids"),
            r"verify.engine: TensorRT refused shape \[1\] of token_ids: token_ids",
        ),
        (Faults(refused_address="final_norm"), "verify.engine: TensorRT refused memory for final_norm: final_norm: no"),
        (Faults(failing_step=3), r"draft.engine: TensorRT refused a step of 3 rows: launch failure"),
    ],
    ids=["context", "shape", "address", "enqueue"],
)
def test_what_tensorrt_refuses_at_run_time_is_told_in_its_words(tmp_path: Path, faults: Faults, message: str) -> None:
    case = Case()
    llm = LLM(case.tensorrt_engine(tmp_path, case.tensorrt(faults)), case.speculation, case.config)
    with pytest.raises(BackendError, match=message):
        llm.generate([prompt[:4] for prompt in PROMPTS], greedy(12))


def test_errors_of_the_past_explain_no_failure(tmp_path: Path) -> None:
    """TensorRT reports errors in calls that succeed, too."""
    case = Case()
    engine = case.tensorrt_engine(tmp_path, case.tensorrt(Faults(no_context=True)))
    assert engine.engines is not None
    engine.engines.errors.report_error("INTERNAL_ERROR", "a tactic was skipped")
    with pytest.raises(BackendError, match=r"refused an execution context: no memory for a context$"):
        LLM(engine, case.speculation, case.config).generate(PROMPTS, greedy(12))
    assert engine.engines.errors.get_num_errors() == 0


@pytest.mark.parametrize(
    ("name", "damaged", "message"),
    [
        ("layers.1.qkv", None, r"draft\.engine: layers\.1\.qkv: expected a tensor to bind, found none"),
        ("final_norm", torch.ones(63), r"draft\.engine: final_norm: expected shape \[64\], found \[63\]"),
        ("lm_head", torch.ones(128, 64).half(), "lm_head: expected float32, found torch.float16"),
        ("layers.0.o_proj", torch.ones(64, 64).t(), None),
        (
            "layers.0.gate_up",
            torch.ones(64, 256).t(),
            r"gate_up: expected a contiguous tensor, found strides \[1, 256\]",
        ),
        ("embedding", torch.ones(128, 64, device="meta"), "embedding: expected memory of cpu, found meta"),
    ],
    ids=["missing", "shape", "type", "square", "strides", "device"],
)
def test_memory_that_does_not_fit(name: str, damaged: torch.Tensor | None, message: str | None, tmp_path: Path) -> None:
    """A square weight that is transposed has the right shape, and strides that tell."""
    case = Case()
    engine = case.tensorrt_engine(tmp_path, case.tensorrt())
    weights = {each: tensor for each, tensor in engine.weights.items() if each != name}
    weights |= {} if damaged is None else {name: damaged}
    with pytest.raises(EngineError, match=message or "expected a contiguous tensor"):
        TensorRTSession(engine.engines, weights, small_memory(case, engine))  # type: ignore[arg-type]


def small_memory(case: Case, engine: LoadedEngine) -> StepMemory:
    limits = ExecutorConfig(max_batch_size=2, num_pages=8)
    return make_memory(engine.config, make_drafter(case.speculation), limits, torch.device("cpu"))


def test_sizes_beyond_the_profiles(tmp_path: Path) -> None:
    """A KV pool larger than the engines were built for; the scheduler's own limits keep rows within."""
    case = Case()
    engine = case.tensorrt_engine(tmp_path, case.tensorrt())
    assert engine.engines is not None
    smaller = replace(engine.config.build, max_batch_size=2, max_num_tokens=160)
    trt = FakeTensorRT(replace(case.tensorrt().config, build=smaller))
    other = replace(engine, engines=fake_engines(tmp_path, trt))
    with pytest.raises(InputError, match=r"draft\.engine: expected max_batch_size in 1\.\.2, found 4"):
        LLM(other, case.speculation, case.config)


def test_more_rows_than_any_profile_has(tmp_path: Path) -> None:
    case = Case()
    smaller = replace(case.torch_engine().config.build, max_num_tokens=68)
    trt = FakeTensorRT(replace(case.tensorrt().config, build=smaller))
    llm = LLM(replace(case.torch_engine(), config=case.tensorrt().config, engines=fake_engines(tmp_path, trt)))
    llm.add_request(PROMPTS[0], greedy(3))
    with pytest.raises(InputError, match=r"verify\.engine: expected at most 68 rows and 68 logits in a step, found 90"):
        llm.step()


def test_drafters_that_the_engines_do_not_serve(tmp_path: Path) -> None:
    case = Case()
    engine = case.tensorrt_engine(tmp_path, case.tensorrt())
    for speculation, message in (
        (replace(SPECULATION, drafter="oracle"), "drafter 'oracle' runs on --backend torch only"),
        (replace(SPECULATION, moving_from="last"), "score_planes: this drafter needs 'rows', .* built with 'diagonal'"),
        (replace(SPECULATION, score_normalizer="exact"), "score_normalizer: this drafter needs 'exact'.* 'draft'"),
    ):
        with pytest.raises(InputError, match=message):
            LLM(engine, speculation, CONFIG)


def test_buckets() -> None:
    """Few of them, never smaller than the step, and little larger."""
    found = [row_bucket(rows) for rows in range(1, 2000)]
    assert found == sorted(found)
    assert all(rows <= size <= max(8 + rows, rows * 9 / 8) for rows, size in enumerate(found, start=1))
    assert found[:9] == [1, 2, 4, 4, 8, 8, 8, 8, 16]
    assert len({*found}) < 60
