"""One safetensors file, opened without trusting it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from sparsespec.builder.checkpoint.base import check_scale, check_shape
from sparsespec.builder.engine_dir import TORCH_DTYPES
from sparsespec.builder.errors import CheckpointError
from sparsespec.builder.input_files import check_readable

_ALL_ROWS = slice(None)


class SafetensorsFile:
    """Opened once, read on demand. Raises CheckpointError for a file that is missing or damaged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with _naming(str(path)):
            self._reader = _open(path)
            # A header may name a million.
            self.names: Mapping[str, None] = dict.fromkeys(self._reader.keys())

    def tensor(self, name: str, shape: tuple[int, ...], rows: slice = _ALL_ROWS) -> torch.Tensor:
        """The `rows` of a floating-point tensor of that shape, as stored."""
        tensor = self._read(name, shape, rows)
        self._check_floating(name, tensor)
        return tensor

    def fp8_tensor(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """A float8_e4m3fn tensor of that shape."""
        tensor = self._read(name, shape, _ALL_ROWS)
        self._check_type(name, tensor, torch.float8_e4m3fn)
        return tensor

    def scalar(self, name: str) -> torch.Tensor:
        """A float32 number, of shape (); the file may say [1]."""
        self._require(name, "a tensor of shape []")
        with _naming(f"{self.path}: {name}"):
            shape = self._reader.get_slice(name).get_shape()
            if shape != [1]:
                check_shape(self.path, name, (), shape)
            tensor: torch.Tensor = self._reader.get_tensor(name)
        self._check_type(name, tensor, torch.float32)
        return tensor.reshape(())

    def head_scales(self, name: str, num_heads: int) -> torch.Tensor:
        """[num_heads] float32, finite and above 0; the file may hold one number for all heads."""
        self._require(name, f"a tensor of shape [] or [{num_heads}]")
        with _naming(f"{self.path}: {name}"):
            shape = self._reader.get_slice(name).get_shape()
            if shape not in ([], [1]):
                check_shape(self.path, name, (num_heads,), shape)
            tensor: torch.Tensor = self._reader.get_tensor(name)
        self._check_floating(name, tensor)
        scales = tensor.float().expand(num_heads)
        check_scale(self.path, name, scales)
        return scales

    def dtype(self, name: str) -> str:
        """The type of a tensor in the format's own words, such as BF16."""
        self._require(name, "a tensor")
        with _naming(f"{self.path}: {name}"):
            dtype: str = self._reader.get_slice(name).get_dtype()
        return dtype

    def _read(self, name: str, shape: tuple[int, ...], rows: slice) -> torch.Tensor:
        self._require(name, f"a tensor of shape {list(shape)}")
        with _naming(f"{self.path}: {name}"):
            stored = self._reader.get_slice(name)
            check_shape(self.path, name, shape, stored.get_shape())
            tensor: torch.Tensor = stored[rows]
        return tensor

    def _check_floating(self, name: str, tensor: torch.Tensor) -> None:
        if tensor.dtype not in TORCH_DTYPES.values():
            expected = ", ".join(TORCH_DTYPES)
            raise CheckpointError(f"{self.path}: {name}: expected one of {expected}, found {tensor.dtype}")

    def _check_type(self, name: str, tensor: torch.Tensor, expected: torch.dtype) -> None:
        if tensor.dtype != expected:
            raise CheckpointError(f"{self.path}: {name}: expected {expected}, found {tensor.dtype}")

    def _require(self, name: str, expected: str) -> None:
        if name not in self.names:
            raise CheckpointError(f"{self.path}: {name}: expected {expected}, found none")


def _open(path: Path) -> Any:
    check_readable(path)
    return safe_open(path, framework="pt")


@contextmanager
def _naming(place: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise CheckpointError(f"{place}: missing; expected a safetensors file") from None
    except OSError as error:
        raise CheckpointError(f"{place}: cannot be read: {error!s:.200}") from error
    except SafetensorError as error:
        raise CheckpointError(f"{place}: damaged; expected a safetensors file: {error!s:.200}") from error
