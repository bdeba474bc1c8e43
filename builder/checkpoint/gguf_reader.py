"""Opening a GGUF file without trusting it: sizes that the file claims are checked before anything is sized by them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, TypeVar

import gguf
import numpy as np
import numpy.typing as npt

from sparsespec.builder.checkpoint.base import check_shape
from sparsespec.builder.config_io import shown
from sparsespec.builder.errors import CheckpointError

ValueT = TypeVar("ValueT", int, float, bool, str)

# The library makes objects for every text; the most that a real file has are a tokenizer's merges, half a million.
_MAX_TEXTS = 2_000_000
_MAX_ARRAY = 4_000_000
_MAX_COUNT = 100_000  # of keys, and of tensors
_MOST_DIMS = 4


class GgufMetadata:
    """Metadata and tensors of one file. Raises CheckpointError when it is truncated, foreign or not native-endian."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._reader = _open(path)
        self.tensors: dict[str, gguf.ReaderTensor] = {tensor.name: tensor for tensor in self._reader.tensors}

    def get(self, key: str, default: ValueT) -> ValueT:
        """A scalar, which must have the type of `default`; `default` when the key is absent."""
        value = self._contents(key)
        if value is None:
            return default
        if type(value) is not type(default):
            raise CheckpointError(f"{self.path}: {key}: expected {type(default).__name__}, found {value!r:.60}")
        return value

    def require_int(self, key: str) -> int:
        """An integer that must be there."""
        if self._contents(key) is None:
            raise CheckpointError(f"{self.path}: {key}: expected int, found nothing")
        return self.get(key, 0)

    def decimal(self, key: str, default: float) -> float:
        """A float32: its shortest decimal is what the converter was given (1e-05, not 9.9999997e-06)."""
        if self._contents(key) is None:
            return default
        with np.errstate(over="ignore"):  # beyond float32 is infinite, which no constant may be
            return float(str(np.float32(self.get(key, default))))

    def keys(self, prefix: str) -> list[str]:
        """The keys that begin so."""
        return [key for key in self._reader.fields if key.startswith(prefix)]

    def values(self, name: str, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
        """A tensor that must be there, dequantised."""
        found = self.tensors.get(name)
        if found is None:
            raise CheckpointError(f"{self.path}: {name}: expected a tensor of shape {list(shape)}, found none")
        check_shape(self.path, name, shape, found.shape.tolist()[::-1])
        try:
            return np.array(gguf.quants.dequantize(found.data, found.tensor_type), np.float32)
        except NotImplementedError:
            kind = found.tensor_type.name
            raise CheckpointError(f"{self.path}: {name}: expected a type gguf can dequantise, found {kind}") from None

    def strings(self, key: str) -> list[str]:
        """An array of strings that must be there."""
        return [value for value in self._list(key) if self._is_kind(key, value, str)]

    def floats(self, key: str) -> list[float]:
        """An array of floats that must be there."""
        return [value for value in self._list(key) if self._is_kind(key, value, float)]

    def integers(self, key: str) -> list[int]:
        """An array of integers that must be there."""
        return [value for value in self._list(key) if self._is_kind(key, value, int)]

    def _list(self, key: str) -> list[Any]:
        values = self._contents(key)
        if not isinstance(values, list):
            raise CheckpointError(f"{self.path}: {key}: expected an array, found {values!r:.60}")
        return values

    def _is_kind(self, key: str, value: object, kind: type) -> bool:
        if type(value) is not kind:
            raise CheckpointError(f"{self.path}: {key}: expected {kind.__name__} elements, found {value!r:.60}")
        return True

    def _contents(self, key: str) -> Any:
        field = self._reader.get_field(key)
        try:
            return None if field is None else field.contents()
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{self.path}: {key}: expected UTF-8 text, found {error.object[:20]!r}") from error


def _open(path: Path) -> _CheckedReader:
    try:
        reader = _CheckedReader(path)
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    except (ValueError, LookupError, ArithmeticError, TypeError, RecursionError) as error:
        found = f"{path.stat().st_size} bytes that are not one: {error!s:.200}"
        raise CheckpointError(f"{path}: expected a GGUF file, found {found}") from error
    if reader.byte_order != "I":
        raise CheckpointError(f"{path}: expected this machine's byte order, found the other one")
    return reader


class _CheckedReader(gguf.GGUFReader):
    """The library slices past the end of a short file without noticing, and so loops for as long as a header says."""

    _num_texts = 0  # in arrays

    def _get(self, offset: Any, dtype: Any, count: Any = 1, override_order: Any = None) -> Any:
        kind = np.dtype(dtype).newbyteorder(override_order or self.byte_order)
        end = int(offset) + kind.itemsize * int(count)
        if end > len(self.data):
            raise ValueError(f"truncated: expected at least {end} bytes, found {len(self.data)}")
        # Slicing numpy's memmap, as the library does, takes several times as long; a vocabulary is a million slices.
        return np.frombuffer(self.data, kind, int(count), int(offset))

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
        if raw_type == gguf.GGUFValueType.ARRAY:
            kind, length = self._get(orig_offs, np.uint32), self._get(orig_offs + 4, np.uint64)
            if int(length[0]) > _MAX_ARRAY:
                raise ValueError(f"an array of {length[0]} elements; expected at most {_MAX_ARRAY}")
            dtype = self.gguf_scalar_to_np.get(gguf.GGUFValueType(int(kind[0])))
            if dtype is not None:  # the library makes an object for every number
                numbers = self._get(orig_offs + 12, dtype, length[0])
                types = [gguf.GGUFValueType.ARRAY, gguf.GGUFValueType(int(kind[0]))]
                return 12 + numbers.nbytes, [kind, length, numbers], [2], types
            self._num_texts += int(length[0])
            if self._num_texts > _MAX_TEXTS:
                raise ValueError(f"arrays of {self._num_texts} texts; expected at most {_MAX_TEXTS}")
        return super()._get_field_parts(orig_offs, raw_type)

    def _build_fields(self, offs: int, count: int) -> int:
        _check_count("keys", count)
        return super()._build_fields(offs, count)

    def _build_tensor_info(self, offs: int, count: int) -> tuple[int, list[gguf.ReaderField]]:
        _check_count("tensors", count)
        return super()._build_tensor_info(offs, count)

    def _build_tensors(self, start_offs: int, fields: list[gguf.ReaderField]) -> None:
        for field in fields:
            _, name, _, dims, kind, offset = field.parts
            # One too many is as wrong as a million, which would not fit in memory.
            few = dims[: _MOST_DIMS + 1].tolist()
            self._check_extent(bytes(name).decode(), few, int(kind[0]), int(start_offs) + int(offset[0]))
        super()._build_tensors(start_offs, fields)

    def _check_extent(self, name: str, dims: list[int], kind: int, start: int) -> None:
        path, name = self.data.filename, name[:200]
        try:
            block, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
        except (ValueError, KeyError):
            raise CheckpointError(f"{path}: {name}: expected a known tensor type, found {kind}") from None
        if not 1 <= len(dims) <= _MOST_DIMS or dims[0] % block:
            expected = f"rows of whole {block}-element blocks"
            raise CheckpointError(f"{path}: {name}: expected {expected}, found shape {shown(dims)}")
        end = start + math.prod(dims) // block * block_bytes
        if end > len(self.data):
            raise CheckpointError(
                f"{path}: {name}: expected {end - start} bytes of data at {start}, found a file of {len(self.data)}"
            )


def _check_count(what: str, count: int) -> None:
    if count > _MAX_COUNT:
        raise ValueError(f"{count} {what}; expected at most {_MAX_COUNT}")
