"""Reading files that somebody else wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sparsespec.builder.errors import InputError

_MOST_JSON_BYTES = 16 * 2**20  # an index of ten thousand tensors has one


def check_readable(path: Path) -> None:
    """Raises OSError unless `path` is a regular file that may be read; a pipe would keep its reader waiting."""
    if path.exists() and not path.is_file():
        raise OSError("expected a regular file, found another kind")
    try:
        path.open("rb").close()
    except ValueError as error:  # a NUL, or half a surrogate pair: what a JSON file may say, but no file can be called
        raise OSError(f"no file can have this name: {error}") from None


def read_regular(path: Path) -> bytes:
    """All of a file. Raises OSError where check_readable does."""
    check_readable(path)
    return path.read_bytes()


def read_json_object(path: Path, error_type: type[InputError], expected: str) -> dict[str, Any]:
    """A JSON object. Raises `error_type`, where the file is missing with what was `expected` there."""
    try:
        check_readable(path)
        with path.open("rb") as file:
            content = file.read(_MOST_JSON_BYTES + 1)
    except FileNotFoundError:
        raise error_type(f"{path}: missing; expected {expected}") from None
    except OSError as error:
        raise error_type(f"{path}: cannot be read: {error}") from error
    if len(content) > _MOST_JSON_BYTES:
        raise error_type(f"{path}: expected at most {_MOST_JSON_BYTES} bytes of JSON, found more")
    try:
        document = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise error_type(f"{path}: expected JSON, found something else ({error})") from error
    if not isinstance(document, dict):
        raise error_type(f"{path}: expected a JSON object, found {type(document).__name__}")
    return document
