"""Reading files that somebody else wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sparsespec.builder.errors import InputError


def check_readable(path: Path) -> None:
    """Raises OSError unless `path` is a regular file that may be read; a pipe would keep its reader waiting."""
    if path.exists() and not path.is_file():
        raise OSError("expected a regular file, found another kind")
    path.open("rb").close()


def read_json_object(path: Path, error_type: type[InputError], expected: str) -> dict[str, Any]:
    """A JSON object. Raises `error_type`, where the file is missing with what was `expected` there."""
    try:
        check_readable(path)
        content = path.read_bytes()
    except FileNotFoundError:
        raise error_type(f"{path}: missing; expected {expected}") from None
    except OSError as error:
        raise error_type(f"{path}: cannot be read: {error}") from error
    try:
        document = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise error_type(f"{path}: expected JSON, found something else ({error})") from error
    if not isinstance(document, dict):
        raise error_type(f"{path}: expected a JSON object, found {type(document).__name__}")
    return document
