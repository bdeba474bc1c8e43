"""Tokenizers on disk: an engine carries its own copy, loadable with PreTrainedTokenizerFast.from_pretrained."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from sparsespec.builder.errors import CheckpointError, EngineError, one_line

TOKENIZER_FILE = "tokenizer.json"
# Either of these is enough for AutoTokenizer; without one it would make up an empty tokenizer.
_SOURCE_FILES = (TOKENIZER_FILE, "tokenizer.model", "vocab.json")


def copy_tokenizer(source: Path, directory: Path) -> None:
    """Write the tokenizer of a Hugging Face directory, with its chat template, as tokenizer.json and its config.

    Raises CheckpointError when `source` has no tokenizer or one that tokenizer.json cannot express, EngineError when
    `directory` cannot be written.
    """
    if not any((source / name).is_file() for name in _SOURCE_FILES):
        raise CheckpointError(f"{source}: no tokenizer; expected one of {', '.join(_SOURCE_FILES)}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers and tokenizers raise a bare Exception for damaged files
        raise CheckpointError(f"{source}: the tokenizer cannot be loaded: {one_line(error)}") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise CheckpointError(f"{source}: expected a fast tokenizer, found {type(tokenizer).__name__}")
    save_tokenizer(tokenizer, directory)


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
    try:
        tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(engine_dir, local_files_only=True)
    except Exception as error:  # as above
        raise EngineError(f"{path}: the tokenizer cannot be loaded: {one_line(error)}") from error
    return tokenizer
