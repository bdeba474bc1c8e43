from __future__ import annotations

import json
import multiprocessing
import os
import signal
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sparsespec.builder.build_config import BuildConfig
from sparsespec.builder.engine_dir import EngineConfig, load_weights, read_engine_config, write_engine
from sparsespec.builder.errors import EngineError, InputError
from sparsespec.builder.tokenizer_files import load_tokenizer
from tiny_models import random_weights, tiny_model_config, write_tiny_engine

MODEL = tiny_model_config(num_layers=1)
BUILD = BuildConfig(dtype="float32")
CONFIG = EngineConfig(MODEL, BUILD)


def weights(seed: int) -> Iterator[tuple[str, torch.Tensor]]:
    yield from random_weights(MODEL, torch.float32, seed).items()


def write(directory: Path, tensors: Iterator[tuple[str, torch.Tensor]], force: bool = False) -> None:
    write_engine(directory, CONFIG, tensors, lambda _: None, force)


def holds(directory: Path, seed: int) -> bool:
    expected = random_weights(MODEL, torch.float32, seed)
    found = load_weights(directory, read_engine_config(directory), "cpu")
    return list(found) == list(expected) and all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    return write_tiny_engine(tmp_path / "engine", MODEL, BUILD, seed=1)


def test_written_engine_reads_back(engine: Path) -> None:
    assert read_engine_config(engine) == CONFIG
    assert holds(engine, seed=1)
    assert os.listdir(engine.parent) == ["engine"]


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_dtype_is_kept(tmp_path: Path, dtype: str) -> None:
    build = BuildConfig(dtype=dtype)  # type: ignore[arg-type]
    engine = write_tiny_engine(tmp_path / "engine", MODEL, build, seed=1)
    loaded = load_weights(engine, read_engine_config(engine), "cpu")
    assert {tensor.dtype for tensor in loaded.values()} == {getattr(torch, dtype)}


def test_every_file_has_the_same_permissions(engine: Path) -> None:
    assert len({stat.S_IMODE(path.stat().st_mode) for path in engine.iterdir()}) == 1


def test_tokenizer_is_loaded_with_its_chat_template(engine: Path) -> None:
    tokenizer = load_tokenizer(engine)
    text = "Hé, 12 €\n😀"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert chat == "<|user|>hi<|eos|><|assistant|>"


def test_missing_or_damaged_tokenizer_is_an_engine_error(engine: Path) -> None:
    (engine / "tokenizer.json").write_text("{}")
    with pytest.raises(EngineError, match=r"tokenizer\.json: the tokenizer cannot be loaded"):
        load_tokenizer(engine)
    (engine / "tokenizer.json").unlink()
    with pytest.raises(EngineError, match=r"tokenizer\.json: missing"):
        load_tokenizer(engine)


def test_auto_is_not_a_dtype_of_an_engine() -> None:
    with pytest.raises(InputError, match=r"dtype: expected one of float64, .* found 'auto'"):
        EngineConfig(MODEL, BuildConfig())


def test_existing_engine_needs_force(engine: Path) -> None:
    with pytest.raises(EngineError, match="exists and is not empty"):
        write(engine, weights(2))
    assert holds(engine, seed=1)
    write(engine, weights(2), force=True)
    assert holds(engine, seed=2)
    assert os.listdir(engine.parent) == ["engine"]


def test_empty_directory_is_filled_without_force(tmp_path: Path) -> None:
    (tmp_path / "engine").mkdir()
    write(tmp_path / "engine", weights(1))
    assert holds(tmp_path / "engine", seed=1)


def test_force_never_replaces_what_is_not_an_engine(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(EngineError, match="--force replaces engines only"):
        write(tmp_path / "precious", weights(1), force=True)
    assert os.listdir(tmp_path / "precious") == ["config.json"]


@pytest.mark.parametrize("name", ["precious.txt", "checkpoint/model.safetensors", "tokenizer.json.d/mine"])
def test_force_never_deletes_what_is_not_of_an_engine(engine: Path, name: str) -> None:
    precious = engine / name
    precious.parent.mkdir(exist_ok=True)
    precious.write_text("mine")
    with pytest.raises(EngineError, match=f"{engine / Path(name).parts[0]}: not a file of an engine"):
        write(engine, weights(2), force=True)
    assert precious.read_text() == "mine"
    assert holds(engine, seed=1)


def test_force_replaces_every_file_of_a_tokenizer(engine: Path) -> None:
    (engine / "additional_chat_templates").mkdir()
    for name in ("additional_chat_templates/tools.jinja", "merges.txt", "special_tokens_map.json"):
        (engine / name).write_text("")
    write(engine, weights(2), force=True)
    assert sorted(os.listdir(engine)) == ["config.json", "weights.safetensors"]


def test_output_dir_that_is_a_loop_of_links_is_refused(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(EngineError, match="loop: expected a directory or nothing"):
        write(tmp_path / "loop", weights(1))


def test_output_dir_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EngineError, match="expected a directory or nothing, found a file"):
        write(tmp_path / "file", weights(1), force=True)


def test_failed_build_leaves_nothing_and_keeps_the_old_engine(engine: Path) -> None:
    def failing() -> Iterator[tuple[str, torch.Tensor]]:
        yield next(weights(2))
        raise InputError("broken checkpoint")

    with pytest.raises(InputError, match="broken checkpoint"):
        write(engine, failing(), force=True)
    assert holds(engine, seed=1)
    assert os.listdir(engine.parent) == ["engine"]


def killed_build(directory: Path) -> None:
    def deadly() -> Iterator[tuple[str, torch.Tensor]]:
        yield next(weights(2))
        os.kill(os.getpid(), signal.SIGKILL)

    process = multiprocessing.get_context("fork").Process(target=lambda: write(directory, deadly(), force=True))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def test_killed_build_keeps_the_old_engine_and_the_next_build_cleans_up(engine: Path) -> None:
    killed_build(engine)
    assert holds(engine, seed=1)
    assert len(os.listdir(engine.parent)) == 2
    write(engine, weights(3), force=True)
    assert holds(engine, seed=3)
    assert os.listdir(engine.parent) == ["engine"]


def test_killed_first_build_leaves_no_engine(tmp_path: Path) -> None:
    killed_build(tmp_path / "engine")
    with pytest.raises(EngineError, match=r"config\.json: missing"):
        read_engine_config(tmp_path / "engine")


def test_build_killed_between_its_renames_gives_the_old_engine_back(engine: Path) -> None:
    stage = engine.parent / ".engine.building-abcd_123"
    stage.mkdir()
    engine.rename(stage / "replaced")
    with pytest.raises(EngineError, match="not empty"):
        write(engine, weights(2))
    assert holds(engine, seed=1)


def test_live_build_is_not_disturbed_by_another(tmp_path: Path) -> None:
    directory = tmp_path / "engine"

    def overtaken() -> Iterator[tuple[str, torch.Tensor]]:
        write(directory, weights(1))
        yield from weights(2)

    write(directory, overtaken(), force=True)
    assert holds(directory, seed=2)


def test_build_overtaken_by_another_does_not_replace_it_without_force(tmp_path: Path) -> None:
    directory = tmp_path / "engine"

    def overtaken() -> Iterator[tuple[str, torch.Tensor]]:
        write(directory, weights(1))
        yield from weights(2)

    with pytest.raises(EngineError, match="not empty"):
        write(directory, overtaken())
    assert holds(directory, seed=1)


def test_other_names_are_left_alone(tmp_path: Path) -> None:
    other = tmp_path / ".engine.building-notes.txt"
    other.write_text("mine")
    write(tmp_path / "engine", weights(1))
    assert other.read_text() == "mine"


def change(**values: object) -> Callable[[str], str]:
    return lambda text: json.dumps(json.loads(text) | values)


def change_section(section: str, key: str, value: object) -> Callable[[str], str]:
    def edited(text: str) -> str:
        document = json.loads(text)
        document[section][key] = value
        return json.dumps(document)

    return edited


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda text: text[:-20], "expected JSON"),
        (lambda _: "[]", "expected a JSON object, found list"),
        (lambda _: "{}", "not an engine: expected format 'sparsespec-engine', found None"),
        (change(format="other"), "found 'other'"),
        (change(version=2), "expected engine version 1, found 2"),
        (change(version=True), "expected engine version 1, found True"),
        (change(version="1"), "expected engine version 1, found '1'"),
        (change(extra=1), "unknown key 'extra'"),
        (change(model=None), "model: expected an object, found None"),
        (change_section("model", "hidden", 1), "model: unknown key 'hidden'"),
        (change_section("model", "family", "mistral"), "model: family: expected one of llama, .*, found 'mistral'"),
        (change_section("model", "num_heads", 3), "num_heads 3 is not a multiple of num_kv_heads 2"),
        (change_section("build", "dtype", "auto"), "dtype: expected one of .* found 'auto'"),
        (change_section("model", "num_layers", 10**9), "num_layers must be at most 1000, found 1000000000"),
        (change_section("model", "head_dim", 2**31), "head_dim must be at most 2147483647, found 2147483648"),
        (change_section("model", "rope_theta", float("inf")), "rope_theta must be finite and above 0, found inf"),
        (change_section("build", "page_size", 0), "page_size must be at least 1, found 0"),
        (change_section("build", "page_size", 1025), "page_size must be at most 1024, found 1025"),
        (change_section("build", "max_budget", 2**31), "max_budget must be at most 2147483647, found 2147483648"),
        (change_section("build", "max_num_tokens", 2**31), "max_num_tokens must be at most 2147483647"),
    ],
)
def test_damaged_foreign_or_newer_config(engine: Path, edit: Callable[[str], str], message: str) -> None:
    path = engine / "config.json"
    path.write_text(edit(path.read_text()))
    with pytest.raises(EngineError, match=rf"config\.json: .*{message}"):
        read_engine_config(engine)


@pytest.mark.parametrize(("family", "lacking"), [("qwen2", "qkv_bias"), ("qwen3", "q_norm")])
def test_config_of_another_family(engine: Path, family: str, lacking: str) -> None:
    """Biases and norms follow from the family, so an engine without them cannot be taken for one with them."""
    path = engine / "config.json"
    path.write_text(change_section("model", "family", family)(path.read_text()))
    with pytest.raises(EngineError, match=rf"weights\.safetensors: layers\.0\.{lacking}: .* found none"):
        load_weights(engine, read_engine_config(engine), "cpu")


def test_pipe_is_not_waited_for(engine: Path) -> None:
    (engine / "config.json").unlink()
    os.mkfifo(engine / "config.json")
    with pytest.raises(EngineError, match=r"config\.json: cannot be read: expected a regular file"):
        read_engine_config(engine)


@pytest.mark.parametrize("device", ["nonsense", "meta"])
def test_unusable_device_is_not_damage(engine: Path, device: str) -> None:
    with pytest.raises(InputError, match=f"device: expected one that torch can use, found '{device}'"):
        load_weights(engine, CONFIG, device)


def edit_tensors(edit: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def edited(path: Path) -> None:
        tensors = load_file(path)
        edit(tensors)
        path.unlink()
        save_file(tensors, path)

    return edited


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "missing"),
        (lambda path: os.truncate(path, 100_000), "damaged weights: expected .* found a file of 100000 bytes"),
        (lambda path: os.truncate(path, 4), "damaged weights: .* found a file of 4 bytes"),
        (lambda path: path.write_bytes(b"\xff" * 64), "damaged weights"),
        (
            edit_tensors(lambda tensors: tensors.pop("layers.0.qkv")),
            r"layers\.0\.qkv: expected a tensor of shape \[128, 64\], found none",
        ),
        (
            edit_tensors(lambda tensors: tensors.update({"final_norm": torch.ones(63)})),
            r"final_norm: expected shape \[64\], found \[63\]",
        ),
        (
            edit_tensors(lambda tensors: tensors.update({"final_norm": torch.ones(64).half()})),
            "final_norm: expected torch.float32, found torch.float16",
        ),
        (edit_tensors(lambda tensors: tensors.update({"extra": torch.ones(1)})), "extra: unknown tensor"),
    ],
)
def test_damaged_weights(engine: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(engine / "weights.safetensors")
    with pytest.raises(EngineError, match=rf"weights\.safetensors: {message}"):
        load_weights(engine, read_engine_config(engine), "cpu")
