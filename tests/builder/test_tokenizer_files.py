from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from sparsespec.builder.errors import CheckpointError, EngineError
from sparsespec.builder.tokenizer_files import copy_tokenizer, load_tokenizer
from tiny_models import tiny_tokenizer

MOST_BYTES = 256 * 2**20


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    tiny_tokenizer(128).save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.json", "tokenizer_config.json", "chat_template.jinja"])
def test_a_file_that_is_too_large_is_not_read(name: str, directory: Path, tmp_path: Path) -> None:
    with (directory / name).open("ab") as file:
        file.truncate(MOST_BYTES + 1)
    message = rf"{name}: expected at most {MOST_BYTES} bytes of a tokenizer, found {MOST_BYTES + 1}$"
    with pytest.raises(CheckpointError, match=message):
        copy_tokenizer(directory, tmp_path / "copy")
    with pytest.raises(EngineError, match=message):
        load_tokenizer(directory)


def test_the_largest_file_is_read(directory: Path) -> None:
    path = directory / "merges.txt"
    path.touch()
    os.truncate(path, MOST_BYTES)
    assert load_tokenizer(directory).encode("a")


def test_a_pipe_is_not_waited_for(directory: Path, tmp_path: Path) -> None:
    (directory / "tokenizer_config.json").unlink()
    os.mkfifo(directory / "tokenizer_config.json")
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json: cannot be read: expected a regular file"):
        copy_tokenizer(directory, tmp_path / "copy")
    with pytest.raises(EngineError, match=r"tokenizer_config\.json: cannot be read: expected a regular file"):
        load_tokenizer(directory)


def test_a_panic_is_an_error(directory: Path, tmp_path: Path) -> None:
    """The library panics over this normalizer instead of raising an Exception."""
    document = json.loads((directory / "tokenizer.json").read_text())
    document["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": ""}
    (directory / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(EngineError, match=r"the tokenizer cannot be loaded: .*precompiled_charsmap"):
        load_tokenizer(directory)
    with pytest.raises(CheckpointError, match=r"the tokenizer cannot be loaded: .*precompiled_charsmap"):
        copy_tokenizer(directory, tmp_path / "copy")


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_a_user_can_still_stop_it(stop: type[BaseException], directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise stop

    monkeypatch.setattr(PreTrainedTokenizerFast, "from_pretrained", interrupted)
    with pytest.raises(stop):
        load_tokenizer(directory)


@pytest.mark.parametrize("name", ["GPT2Tokenizer", "Qwen2Tokenizer", "LlamaTokenizerFast", "PreTrainedTokenizerFast"])
@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3"])
def test_tokenizer_json_is_kept_whatever_class_is_named(
    name: str, model_type: str, directory: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The named classes would split by rules of their own."""
    document = json.loads((directory / "tokenizer.json").read_text())
    digits = {"type": "Digits", "individual_digits": True}
    document["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, document["pre_tokenizer"]]}
    document["normalizer"] = {"type": "Lowercase"}
    bos = {"SpecialToken": {"id": "<|user|>", "type_id": 0}}
    document["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<|user|>": {"id": "<|user|>", "ids": [1], "tokens": ["<|user|>"]}},
    }
    (directory / "tokenizer.json").write_text(json.dumps(document))
    config = json.loads((directory / "tokenizer_config.json").read_text())
    (directory / "tokenizer_config.json").write_text(json.dumps(config | {"tokenizer_class": name}))
    (directory / "config.json").write_text(json.dumps({"model_type": model_type}))
    copy_tokenizer(directory, tmp_path / "copy")
    text = "The   THING 1234, <|user|> x = [1,  2]\n    42"
    expected = Tokenizer.from_file(str(directory / "tokenizer.json")).encode(text).ids
    assert expected[0] == 1
    assert load_tokenizer(tmp_path / "copy").encode(text) == expected
    assert not caplog.records
