"""The check of builder/trt/api.py finds what does not fit: made-up protocols against bindings made up as well."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import pytest

from describe_tensorrt import Bindings, Class, Member
from sparsespec.builder.trt import api
from tensorrt_conformance import class_faults, module_faults

ELEMENT = Member("enumerator")
LAYER = Class(
    ("Layer", "object"),
    {
        "add": Member("method", ("add(self: trt.Layer, input: trt.Tensor, axis: typing.SupportsInt) -> trt.Layer",)),
        "set": Member(
            "method",
            (
                "1. set(self: trt.Layer, dims: trt.Dims, scale: float = 1.0) -> bool",
                "2. set(self: trt.Layer, arg0: List[trt.Tensor]) -> None",
            ),
        ),
        "index": Member("property", ("(arg0: trt.Layer) -> int",)),
        "name": Member("property", ("(arg0: trt.Layer) -> str",), ("(arg0: trt.Layer, arg1: str) -> None",)),
    },
)
KIND = Class(("Kind", "object"), {"name": Member("property", ("name(self: object, /) -> str",)), "ONE": ELEMENT})
TENSOR = Class(("Tensor", "object"), {})
MADE_UP = Bindings(
    "1.0",
    {"Layer": Member("class"), "find": Member("method", ("find(name: str) -> trt.Layer",))},
    {"Layer": LAYER, "Kind": KIND, "Tensor": TENSOR},
)


class Tensor(Protocol): ...


class Layer(Protocol):
    """All that fits."""

    name: str

    @property
    def index(self) -> int: ...

    def add(self, input: Tensor, axis: int) -> Layer: ...

    def set(self, dims: Sequence[int]) -> bool: ...


class Kind(api.Named, Protocol):
    ONE: Kind


class WrongName:
    class Layer(Protocol):
        def append(self, input: Tensor, axis: int) -> None: ...


class WrongParameter:
    class Layer(Protocol):
        def add(self, tensor: Tensor, axis: int) -> None: ...


class MissingParameter:
    class Layer(Protocol):
        def add(self, input: Tensor) -> None: ...


class FurtherParameter:
    class Layer(Protocol):
        def add(self, input: Tensor, axis: int, count: int) -> None: ...


class WrongType:
    class Layer(Protocol):
        def add(self, input: Tensor, axis: str) -> None: ...


class WrongResult:
    class Layer(Protocol):
        def add(self, input: Tensor, axis: int) -> Tensor: ...


class NoOverload:
    class Layer(Protocol):
        def set(self, tensors: Sequence[int]) -> bool: ...


class WrittenThoughReadOnly:
    class Layer(Protocol):
        index: int


class WrongPropertyType:
    class Layer(Protocol):
        name: int


class PropertyOfMethod:
    class Layer(Protocol):
        @property
        def add(self) -> int: ...


class MethodOfProperty:
    class Layer(Protocol):
        def index(self) -> int: ...


class MissingElement:
    class Kind(api.Named, Protocol):
        TWO: MissingElement.Kind


class MissingClass:
    class Network(Protocol): ...


FAULTS = {
    WrongName.Layer: "append: not there",
    WrongParameter.Layer: "add: calls tensor input",
    MissingParameter.Layer: "add: takes (input, axis), not (input)",
    FurtherParameter.Layer: "add: takes (input, axis), not (input, axis, count)",
    WrongType.Layer: "add: takes axis as typing.SupportsInt, not str",
    WrongResult.Layer: "add: gives trt.Layer, not ",
    NoOverload.Layer: "set: calls tensors dims; takes tensors as List[trt.Tensor], not ",
    WrittenThoughReadOnly.Layer: "index: can only be read",
    WrongPropertyType.Layer: "name: is str, not int",
    PropertyOfMethod.Layer: "add: is a method, not a property",
    MethodOfProperty.Layer: "index: is a property, not a method",
    MissingElement.Kind: "TWO: not there",
}


def test_the_check_finds_no_fault_where_there_is_none() -> None:
    assert [fault for each in (Layer, Kind, Tensor) for fault in class_faults(each, MADE_UP)] == []


@pytest.mark.parametrize("protocol", FAULTS, ids=lambda each: each.__qualname__.partition(".")[0])
def test_the_check_finds(protocol: type) -> None:
    faults = class_faults(protocol, MADE_UP)
    assert len(faults) == 1
    assert faults[0].startswith(f"{protocol.__name__}.{FAULTS[protocol]}")


def test_the_check_finds_a_missing_class() -> None:
    assert class_faults(MissingClass.Network, MADE_UP) == ["Network: not there"]


def test_the_check_looks_at_the_module() -> None:
    class Module(Protocol):
        Layer: type
        Network: type
        find: type

        def load(self) -> None: ...

    class Functions(Protocol):
        def find(self, name: str) -> Layer: ...

    class WrongFunctions(Protocol):
        def find(self, name: int) -> Layer: ...

    assert module_faults(Functions, MADE_UP) == []
    assert module_faults(WrongFunctions, MADE_UP) == ["tensorrt.find: takes name as str, not int"]
    assert module_faults(Module, MADE_UP) == [
        "tensorrt.Network: not there",
        "tensorrt.find: is a method, not a class",
        "tensorrt.load: not there",
    ]
