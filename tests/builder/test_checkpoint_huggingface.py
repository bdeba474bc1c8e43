from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

from sparsespec.builder.checkpoint import open_checkpoint, opening
from sparsespec.builder.errors import CheckpointError, EngineError
from sparsespec.builder.fuse import fused_weights
from sparsespec.builder.fused_weights import fused_specs
from sparsespec.builder.model_config import Family, ModelConfig
from tiny_models import tiny_hf_model, tiny_model_config, write_tiny_hf_checkpoint

MODEL = tiny_model_config(num_layers=2, eos_token_ids=(0, 5))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return write_tiny_hf_checkpoint(tmp_path / "hf", tiny_hf_model(MODEL))


def edit_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def edit_config(directory: Path, **values: object) -> None:
    edit_json(directory / "config.json", **values)


def check_fused(source: Path, expected: dict[str, torch.Tensor], model: ModelConfig) -> None:
    """Compare with transformers' own weights, packed here the plain way."""
    checkpoint = open_checkpoint(str(source))
    assert checkpoint.model == model
    fused = dict(fused_weights(checkpoint, torch.float32))
    shapes = {name: spec.shape for name, spec in fused_specs(model, "float32").items()}
    assert {name: tuple(tensor.shape) for name, tensor in fused.items()} == shapes
    layer = "model.layers.1"
    sources = {
        "embedding": ["model.embed_tokens.weight"],
        "layers.1.input_norm": [f"{layer}.input_layernorm.weight"],
        "layers.1.qkv": [f"{layer}.self_attn.{name}_proj.weight" for name in "qkv"],
        "layers.1.o_proj": [f"{layer}.self_attn.o_proj.weight"],
        "layers.1.post_attention_norm": [f"{layer}.post_attention_layernorm.weight"],
        "layers.1.gate_up": [f"{layer}.mlp.gate_proj.weight", f"{layer}.mlp.up_proj.weight"],
        "layers.1.down_proj": [f"{layer}.mlp.down_proj.weight"],
        "final_norm": ["model.norm.weight"],
    }
    if not model.tie_word_embeddings:
        sources["lm_head"] = ["lm_head.weight"]
    if model.family == "qwen2":
        sources["layers.1.qkv_bias"] = [f"{layer}.self_attn.{name}_proj.bias" for name in "qkv"]
    if model.family == "qwen3":
        sources |= {f"layers.1.{name}_norm": [f"{layer}.self_attn.{name}_norm.weight"] for name in "qk"}
    assert sorted(sources) == sorted(name for name in fused if not name.startswith("layers.0"))
    for name, originals in sources.items():
        assert torch.equal(fused[name], torch.cat([expected[original] for original in originals])), name


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", get_args(Family))
def test_weights_equal_transformers(tmp_path: Path, family: Family, shards: int, tied: bool) -> None:
    model = tiny_model_config(family=family, tie_word_embeddings=tied)
    hf_model = tiny_hf_model(model)
    source = write_tiny_hf_checkpoint(tmp_path / "hf", hf_model, shards)
    assert len(list(source.glob("*.safetensors"))) >= shards
    check_fused(source, hf_model.state_dict(), model)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_dtype_of_the_checkpoint(tmp_path: Path, dtype: str) -> None:
    hf_model = tiny_hf_model(MODEL).to(getattr(torch, dtype))
    checkpoint = open_checkpoint(str(write_tiny_hf_checkpoint(tmp_path / "hf", hf_model)))
    assert checkpoint.dtype == dtype
    assert checkpoint.tensor("model.norm.weight", (64,)).dtype == getattr(torch, dtype)


def test_dtype_falls_back_to_the_stored_one(directory: Path) -> None:
    edit_config(directory, dtype=None)
    assert open_checkpoint(str(directory)).dtype == "float32"


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "model.safetensors"])
def test_pipe_is_not_waited_for(directory: Path, name: str) -> None:
    (directory / name).unlink()
    os.mkfifo(directory / name)
    with pytest.raises(CheckpointError, match=rf"{name}.* cannot be read: expected a regular file"):
        open_checkpoint(str(directory))


def edit_tensors(edit: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def edited(directory: Path) -> None:
        path = directory / "model.safetensors"
        tensors = load_file(path)
        edit(tensors)
        save_file(tensors, path)

    return edited


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            edit_tensors(lambda tensors: tensors.pop("model.layers.0.self_attn.k_proj.weight")),
            r"model\.safetensors: model\.layers\.0\.self_attn\.k_proj\.weight: "
            r"expected a tensor of shape \[32, 64\], found none",
        ),
        (
            edit_tensors(lambda tensors: tensors.update({"model.layers.1.mlp.up_proj.weight": torch.ones(2, 3)})),
            r"model\.safetensors: model\.layers\.1\.mlp\.up_proj\.weight: expected shape \[128, 64\], found \[2, 3\]",
        ),
        (
            edit_tensors(lambda tensors: tensors.update({"lm_head.weight": torch.ones(128, 64, dtype=torch.int8)})),
            "lm_head.weight: expected one of .* found torch.int8",
        ),
        (
            lambda directory: os.truncate(directory / "model.safetensors", 20_000),
            r"model\.safetensors: damaged; expected a safetensors file",
        ),
        (lambda directory: edit_config(directory, num_hidden_layers=900), r"model\.layers\.899\.\S+: expected"),
        (
            lambda directory: (directory / "config.json").unlink(),
            r"config\.json: missing; expected a Hugging Face or TensorRT-LLM checkpoint directory",
        ),
        (lambda directory: (directory / "config.json").write_text("{"), r"config\.json: expected JSON"),
        (
            lambda directory: (directory / "model.safetensors").unlink(),
            "expected model.safetensors or .* found neither",
        ),
    ],
)
def test_damaged_checkpoint(directory: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(directory)
    with pytest.raises(CheckpointError, match=message):
        list(fused_weights(open_checkpoint(str(directory)), torch.float32))


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("gone.safetensors", r"gone\.safetensors: missing; expected a safetensors file"),
        ("../elsewhere.safetensors", r"expected the name of a file beside the index, found '\.\./elsewhere"),
        (None, r"index\.json: model\.norm\.weight: expected the name of a safetensors file, found nothing"),
    ],
)
def test_damaged_index(tmp_path: Path, file: str | None, message: str) -> None:
    directory = write_tiny_hf_checkpoint(tmp_path / "hf", tiny_hf_model(MODEL), shards=2)
    path = directory / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.norm.weight"] = file
    path.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(str(directory))


@pytest.mark.parametrize("shards", [1, 2])
def test_tied_model_with_a_projection(tmp_path: Path, shards: int) -> None:
    """The embedding a second time is harmless; transformers would decode with any other."""
    directory = write_tiny_hf_checkpoint(tmp_path / "hf", tiny_hf_model(MODEL), shards)
    edit_config(directory, tie_word_embeddings=True)
    message = r"config\.json: tied embeddings: expected lm_head\.weight to be the embedding, found another"
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(str(directory))
    embedding = next(
        tensors["model.embed_tokens.weight"]
        for tensors in map(load_file, directory.glob("*.safetensors"))
        if "model.embed_tokens.weight" in tensors
    )
    for path in directory.glob("*.safetensors"):
        tensors = load_file(path)
        if "lm_head.weight" in tensors:
            save_file(tensors | {"lm_head.weight": embedding.clone()}, path)
    assert open_checkpoint(str(directory)).model == replace(MODEL, tie_word_embeddings=True)


@pytest.mark.parametrize("shards", [1, 2])
def test_tied_model_whose_matrix_has_the_other_name(tmp_path: Path, shards: int) -> None:
    """As safetensors.torch.save_model writes it; transformers loads it."""
    embedding, lm_head = "model.embed_tokens.weight", "lm_head.weight"
    model = replace(MODEL, tie_word_embeddings=True)
    hf_model = tiny_hf_model(model)
    directory = write_tiny_hf_checkpoint(tmp_path / "hf", hf_model, shards)
    for path in directory.glob("*.safetensors"):
        save_file({name.replace(embedding, lm_head): tensor for name, tensor in load_file(path).items()}, path)
    for path in directory.glob("*.index.json"):
        path.write_text(path.read_text().replace(embedding, lm_head))
    check_fused(directory, hf_model.state_dict(), model)


def test_tokenizer_is_copied_with_its_chat_template(directory: Path, tmp_path: Path) -> None:
    open_checkpoint(str(directory)).save_tokenizer(tmp_path / "copy")
    original = PreTrainedTokenizerFast.from_pretrained(directory)
    copy = PreTrainedTokenizerFast.from_pretrained(tmp_path / "copy")
    assert copy.encode("Hé 12 😀<|eos|>") == original.encode("Hé 12 😀<|eos|>")
    assert copy.chat_template == original.chat_template
    assert copy.eos_token_id == 0


def test_directory_without_a_tokenizer(directory: Path, tmp_path: Path) -> None:
    (directory / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"no tokenizer; expected one of tokenizer\.json"):
        open_checkpoint(str(directory)).save_tokenizer(tmp_path / "copy")


def test_tokenizer_that_cannot_be_written(directory: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="cannot write the tokenizer"):
        open_checkpoint(str(directory)).save_tokenizer(tmp_path / os.fsdecode(b"not-utf-8-\xff"))


def test_broken_tokenizer(directory: Path, tmp_path: Path) -> None:
    (directory / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="the tokenizer cannot be loaded"):
        open_checkpoint(str(directory)).save_tokenizer(tmp_path / "copy")


def test_hub_id_is_downloaded(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def download(repository: str, **_: object) -> str:
        asked.append(repository)
        return str(directory)

    monkeypatch.setattr(opening, "snapshot_download", download)
    assert open_checkpoint("org/model-1.5").model == MODEL
    assert asked == ["org/model-1.5"]


def test_hub_failure_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("no connection\nand a long explanation")

    monkeypatch.setattr(opening, "snapshot_download", offline)
    with pytest.raises(CheckpointError) as error:
        open_checkpoint("org/model")
    assert str(error.value) == (
        "org/model: no local directory of that name, and the Hugging Face Hub did not provide it: no connection"
    )


@pytest.mark.parametrize("source", ["no-such-thing", "/no/such/thing", "org/model.gguf", "./a/b"])
def test_source_that_is_nothing_never_asks_the_hub(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    with pytest.raises(CheckpointError, match=r"expected a Hugging Face directory, a hub id or a \.gguf file"):
        open_checkpoint(source)


def test_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="found another kind of file"):
        open_checkpoint(str(tmp_path / "model.bin"))


@pytest.mark.parametrize(("source", "message"), [("x" * 5000, "File name too long"), ("loop", "symbolic links")])
def test_source_that_cannot_be_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    with pytest.raises(CheckpointError, match=f"{source}: cannot be read: .*{message}"):
        open_checkpoint(source)
