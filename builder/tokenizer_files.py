"""Tokenizers on disk: an engine carries its own copy, loadable with PreTrainedTokenizerFast.from_pretrained."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from sparsespec.builder.errors import CheckpointError, EngineError, InputError, one_line
from sparsespec.builder.input_files import check_readable

TOKENIZER_FILE = "tokenizer.json"
# Either of these is enough for AutoTokenizer; without one it would make up an empty tokenizer.
_SOURCE_FILES = (TOKENIZER_FILE, "tokenizer.model", "vocab.json")
_FILES = (
    *_SOURCE_FILES,
    "merges.txt",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
    "chat_template.jinja",
)
_MOST_BYTES = 256 * 2**20  # a tokenizer.json of 260,000 tokens has 35 MB


def copy_tokenizer(source: Path, directory: Path) -> None:
    """Write the tokenizer of a Hugging Face directory, with its chat template, as tokenizer.json and its config.

    Raises CheckpointError when `source` has no tokenizer or one that tokenizer.json cannot express, EngineError when
    `directory` cannot be written.
    """
    if not any((source / name).is_file() for name in _SOURCE_FILES):
        raise CheckpointError(f"{source}: no tokenizer; expected one of {', '.join(_SOURCE_FILES)}")
    _check_files(source, CheckpointError)
    with any_error(lambda reason: CheckpointError(f"{source}: the tokenizer cannot be loaded: {reason}")):
        tokenizer = _open(source)
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise CheckpointError(f"{source}: expected a fast tokenizer, found {type(tokenizer).__name__}")
    save_tokenizer(tokenizer, directory)


def _open(source: Path) -> object:
    """tokenizer.json as it is, where there is one.

    The classes that AutoTokenizer goes by build rules of their own around its vocabulary: transformers 5's
    GPT2Tokenizer would forget that SmolLM2's tokenizer.json splits numbers into digits.
    """
    if (source / TOKENIZER_FILE).is_file():
        return PreTrainedTokenizerFast.from_pretrained(source, local_files_only=True)
    return AutoTokenizer.from_pretrained(source, local_files_only=True, trust_remote_code=False)


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    """Write a tokenizer with its chat template. Raises EngineError when `directory` cannot be written."""
    try:
        tokenizer.save_pretrained(directory)
    except Exception as error:  # tokenizers raises a bare Exception for a full disk, and cannot write some paths
        raise EngineError(f"{directory}: cannot write the tokenizer: {one_line(error)}") from error


def load_tokenizer(engine_dir: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of an engine directory. Raises EngineError when it is missing or damaged."""
    path = engine_dir / TOKENIZER_FILE
    if not path.is_file():
        raise EngineError(f"{path}: missing; expected the tokenizer of an engine directory")
    _check_files(engine_dir, EngineError)
    with any_error(lambda reason: EngineError(f"{path}: the tokenizer cannot be loaded: {reason}")):
        tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(engine_dir, local_files_only=True)
    return tokenizer


def _check_files(directory: Path, error_type: type[InputError]) -> None:
    """Raises `error_type` for what is no readable file, or too large to be a tokenizer's: all of it would be read."""
    for path in (directory / name for name in _FILES):
        try:
            if not path.exists():
                continue
            check_readable(path)
            size = path.stat().st_size
        except OSError as error:
            raise error_type(f"{path}: cannot be read: {error}") from error
        if size > _MOST_BYTES:
            raise error_type(f"{path}: expected at most {_MOST_BYTES} bytes of a tokenizer, found {size}")


@contextmanager
def any_error(make: Callable[[str], InputError]) -> Iterator[None]:
    """transformers and tokenizers raise a bare Exception for what they cannot take; tokenizers, in Rust, may panic."""
    try:
        yield
    except Exception as error:
        raise make(one_line(error)) from error
    except BaseException as error:
        # A panic is no Exception, and the module that its class names cannot be imported.
        if type(error).__module__ != "pyo3_runtime":
            raise
        raise make(one_line(error)) from error
