"""A request's tensors, read by name. Triton has checked their types and shapes against config.pbtxt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sparsespec.builder.errors import RequestError
from sparsespec.runtime.serving.triton.python_backend import Array, InputTensor

_NOTHING: Array = np.empty(0)


class Inputs:
    """Tensors of one request; None or nothing for those that the client did not send. Raises RequestError."""

    def __init__(self, tensors: Sequence[InputTensor]) -> None:
        self._arrays = {tensor.name(): tensor.as_numpy() for tensor in tensors}

    def names(self) -> Sequence[str]:
        """Those that were sent."""
        return tuple(self._arrays)

    def texts(self, name: str) -> tuple[str, ...]:
        """TYPE_STRING. Empty texts are left out: clients send them for nothing."""
        texts = [_text(name, value) for value in self._values(name)]
        return tuple(text for text in texts if text)

    def text(self, name: str) -> str | None:
        """TYPE_STRING of one element."""
        value = self._single(name)
        return None if value is None else _text(name, value)

    def integers(self, name: str) -> tuple[int, ...]:
        """An integer type."""
        return tuple(int(value) for value in self._values(name))

    def integer(self, name: str, default: int) -> int:
        """An integer type, of one element."""
        value = self._single(name)
        return default if value is None else int(value)

    def number(self, name: str, default: float) -> float:
        """TYPE_FP32 of one element: the shortest number that it is in 32 bits, so that 0.7 is what Python calls 0.7."""
        value = self._single(name)
        return default if value is None else float(str(value))

    def flag(self, name: str, default: bool = False) -> bool:
        """TYPE_BOOL of one element."""
        value = self._single(name)
        return default if value is None else bool(value)

    def _values(self, name: str) -> Array:
        return self._arrays[name].reshape(-1) if name in self._arrays else _NOTHING

    def _single(self, name: str) -> Any:
        if name not in self._arrays:
            return None
        array = self._arrays[name]
        if array.size != 1:
            raise RequestError(f"{name} must be one value, found shape {list(array.shape)}")
        return array.reshape(-1)[0]


def _text(name: str, value: bytes) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(f"{name} must be UTF-8: {error}") from None
