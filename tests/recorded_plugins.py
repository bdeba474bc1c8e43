"""TensorRT's plugin registry with this project's plugins in it, which remember their fields and do nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from documented_plugins import all_fields
from recorded_ops import Plugin
from recorded_types import PluginFieldType, TensorRTPhase, require

_DTYPES = {PluginFieldType.INT32: np.int32, PluginFieldType.FLOAT32: np.float32, PluginFieldType.CHAR: np.int8}


@dataclass(frozen=True)
class Field:
    """PluginField: a name and memory."""

    name: str
    data: NDArray[Any]
    type: PluginFieldType

    @property
    def value(self) -> int | float | str:
        """What the plugin reads there."""
        expected = np.dtype(_DTYPES[self.type])
        require(self.data.dtype == expected, f"field {self.name}: expected {expected}, found {self.data.dtype}")
        if self.type == PluginFieldType.CHAR:
            return self.data.tobytes().decode()
        require(self.data.size == 1, f"field {self.name}: {self.data.size} numbers")
        number: int | float = self.data.item()
        return number


@dataclass(frozen=True)
class Creator:
    """IPluginCreatorV3One."""

    plugin: str

    def create_plugin(self, name: str, field_collection: Sequence[Field], phase: TensorRTPhase) -> Plugin | None:
        given = {field.name: field.value for field in field_collection}
        fields = all_fields(self.plugin, given) if len(given) == len(field_collection) else None
        return None if fields is None else Plugin(self.plugin, tuple(fields.items()))


class Registry:
    """IPluginRegistry with this project's plugins."""

    def get_creator(self, type: str, version: str, plugin_namespace: str) -> Creator | None:
        known = type in ("PillarPlan", "PillarAttention") and (version, plugin_namespace) == ("1", "")
        return Creator(type) if known else None
