"""The prompts of a run, from flags and files."""

from __future__ import annotations

from pathlib import Path

from sparsespec.builder.errors import InputError
from sparsespec.runtime.cli.run_config import RunConfig


def read_prompts(config: RunConfig) -> tuple[str, ...]:
    """One prompt per input_text, each after the document if there is one; without texts the document itself.

    Raises InputError for a file that is not readable UTF-8 text.
    """
    if config.input_file is None:
        return config.input_text
    document = _read_document(config.input_file)
    if not config.input_text:
        return (document,)
    return tuple(f"{document.rstrip()}\n\n{question}" for question in config.input_text)


def _read_document(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise InputError(f"{path}: expected UTF-8 text, found byte 0x{byte:02x} at offset {error.start}") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    if not text.strip():
        raise InputError(f"{path}: the file is empty: expected text, found {len(text)} blank characters")
    return text
