"""JSON files of a checkpoint directory, whose errors name file and key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from sparsespec.builder.config_io import to_float
from sparsespec.builder.errors import CheckpointError, InputError
from sparsespec.builder.input_files import read_json_object

ValueT = TypeVar("ValueT", int, float, bool, str)


@dataclass(frozen=True)
class JsonFile:
    """A parsed JSON object that knows where it came from; a null value counts as absent."""

    path: Path
    values: Mapping[str, Any]
    section_name: str = ""

    @staticmethod
    def read(path: Path) -> JsonFile:
        """Raises CheckpointError when the file is missing or not a JSON object."""
        return JsonFile(
            path, read_json_object(path, CheckpointError, "a Hugging Face or TensorRT-LLM checkpoint directory")
        )

    def section(self, key: str) -> JsonFile:
        """The object under `key`, empty when it is absent; errors name this file and `key`."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, dict):
            raise self.error(f"{key}: expected an object, found {value!r:.200}")
        return JsonFile(self.path, value or {}, key)

    def get(self, key: str, default: ValueT) -> ValueT:
        """The value of `key`, which must have the type of `default`."""
        value, kind = self.values.get(key), type(default)
        if value is None:
            return default
        if kind is float and type(value) is int:
            with self.naming(key):
                return kind(to_float(value))
        if type(value) is not kind:
            raise self.error(f"{key}: expected {kind.__name__}, found {value!r:.200}")
        return value

    def require_int(self, key: str) -> int:
        """An integer that must be there."""
        if self.values.get(key) is None:
            raise self.error(f"{key}: expected int, found nothing")
        return self.get(key, 0)

    def require_float(self, key: str) -> float:
        """A number that must be there."""
        if self.values.get(key) is None:
            raise self.error(f"{key}: expected float, found nothing")
        return self.get(key, 0.0)

    def error(self, message: str) -> CheckpointError:
        """`message` after the names of file and section."""
        places = (str(self.path), *([self.section_name] if self.section_name else []))
        return CheckpointError(": ".join((*places, message)))

    @contextmanager
    def naming(self, key: str = "") -> Iterator[None]:
        """Errors of values that came from here, or from `key`, name the place; those of a checkpoint already do."""
        try:
            yield
        except CheckpointError:
            raise
        except InputError as error:
            raise self.error(f"{key}: {error}" if key else str(error)) from error
