"""The prompts of a run, from flags and files."""

from __future__ import annotations

from pathlib import Path

from sparsespec.builder.errors import InputError
from sparsespec.runtime.cli.run_config import RunConfig

_MOST_BYTES = 64 * 2**20  # more than the longest contexts hold; also what is read of a pipe that never ends


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
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise InputError(f"{path}: expected at most {_MOST_BYTES} bytes of text, found more")
        text = content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise InputError(f"{path}: expected UTF-8 text, found byte 0x{byte:02x} at offset {error.start}") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    if not text.strip():
        raise InputError(f"{path}: the file is empty: expected text, found {len(text)} blank characters")
    return text
