"""Types of a recorded network: TensorRT's enumerations as far as this project names them, and types of tensors."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

DataType = Enum("DataType", ["FLOAT", "HALF", "BF16", "FP8", "INT32", "INT64"])
MatrixOperation = Enum("MatrixOperation", ["NONE", "TRANSPOSE"])
ElementWiseOperation = Enum("ElementWiseOperation", ["SUM", "PROD", "DIV", "FLOOR_DIV"])
UnaryOperation = Enum("UnaryOperation", ["SQRT"])
ReduceOperation = Enum("ReduceOperation", ["AVG"])
ActivationType = Enum("ActivationType", ["SIGMOID"])
PluginFieldType = Enum("PluginFieldType", ["INT32", "FLOAT32", "CHAR"])
TensorRTPhase = Enum("TensorRTPhase", ["BUILD"])

FLOATS = (DataType.FLOAT, DataType.HALF, DataType.BF16)
INTEGERS = (DataType.INT32, DataType.INT64)

UNKNOWN = -1  # a size that only the run time knows

Shape = tuple[int, ...]


class Refused(Exception):
    """TensorRT would not take this network, or not these tensors."""


def require(condition: bool, message: str) -> None:
    """Not `assert`: python -O would leave it out."""
    if not condition:
        raise Refused(message)


@dataclass(frozen=True)
class TensorType:
    """All that layers need to know of a tensor before there are numbers in it."""

    dtype: DataType
    shape: Shape
    contents: Shape | None = None  # of integer vectors, which may be shapes: their numbers, UNKNOWN among them

    def __str__(self) -> str:
        return f"{self.dtype.name}{list(self.shape)}"
