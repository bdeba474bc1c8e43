"""Whether TensorRT's bindings have what protocols such as those of builder/trt/api.py declare."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from types import FunctionType, ModuleType
from typing import Any, Generic, Protocol, get_type_hints

from describe_tensorrt import Bindings, Member
from tensorrt_signatures import function_fault, given, method_fault, parse_signature, taken


@dataclass(frozen=True)
class Variable:
    """An attribute that a protocol declares by its type."""

    type: Any


Declared = Variable | property | FunctionType


def protocols_of(module: ModuleType) -> list[type]:
    """Those that the module declares."""
    found = [each for name, each in vars(module).items() if getattr(each, "__name__", "") == name]
    return [each for each in found if each.__module__ == module.__name__ and getattr(each, "_is_protocol", False)]


def declarations(protocol: type) -> dict[str, Declared]:
    """What a protocol and its bases say, by name, without what Python gives to every class."""
    declared: dict[str, Declared] = {name: Variable(kind) for name, kind in get_type_hints(protocol).items()}
    for base in protocol.__mro__:
        if base not in (object, Protocol, Generic):
            functions = {name: each for name, each in vars(base).items() if isinstance(each, FunctionType | property)}
            declared |= {name: each for name, each in functions.items() if _module_of(each) == base.__module__}
    return {name: each for name, each in declared.items() if name != "__hash__"}


def class_faults(protocol: type, bindings: Bindings) -> list[str]:
    """What is wrong with the bindings' class of the protocol's name, as "Class.member: what"; none where it fits."""
    name = protocol.__name__
    if name not in bindings.classes:
        return [f"{name}: not there"]
    members = bindings.classes[name].members
    faults = {each: _member_fault(protocol, what, members.get(each), bindings)
              for each, what in declarations(protocol).items()}  # fmt: skip
    return [f"{name}.{each}: {fault}" for each, fault in faults.items() if fault is not None]


def module_faults(protocol: type, bindings: Bindings) -> list[str]:
    """The same of a protocol that is about the module."""
    faults = {each: _attribute_fault(each, what, bindings) for each, what in declarations(protocol).items()}
    return [f"tensorrt.{each}: {fault}" for each, fault in faults.items() if fault is not None]


def _member_fault(protocol: type, declared: Declared, found: Member | None, bindings: Bindings) -> str | None:
    if found is None:
        return "not there"
    if isinstance(declared, FunctionType):
        return _method_fault(declared, found, bindings)
    if isinstance(declared, property):
        return _property_fault(get_type_hints(declared.fget)["return"], found, bindings)
    if declared.type is protocol:
        return None if found.kind == "enumerator" else f"is a {found.kind}, not one of an enumeration"
    return _property_fault(declared.type, found, bindings) or _setter_fault(declared.type, found, bindings)


def _method_fault(declared: FunctionType, found: Member, bindings: Bindings) -> str | None:
    expected = "buffer" if declared.__name__ == "__buffer__" else "method"
    if found.kind != expected:
        return f"is a {found.kind}, not a {expected}"
    return method_fault(declared, found.reads, bindings) if expected == "method" else None


def _property_fault(kind: Any, found: Member, bindings: Bindings) -> str | None:
    if found.kind != "property":
        return f"is a {found.kind}, not a property"
    result = parse_signature(found.reads[0]).result
    return None if given(result, kind, bindings) else f"is {result}, not {inspect.formatannotation(kind)}"


def _setter_fault(kind: Any, found: Member, bindings: Bindings) -> str | None:
    if not found.writes:
        return "can only be read"
    asked = parse_signature(found.writes[0]).parameters[1].type
    return None if taken(asked, kind, bindings) else f"is set to {asked}, not {inspect.formatannotation(kind)}"


def _attribute_fault(name: str, declared: Declared, bindings: Bindings) -> str | None:
    found = bindings.members.get(name)
    if found is None:
        return "not there"
    if isinstance(declared, FunctionType):
        return _call_fault(declared, found, bindings)
    expected = "str" if isinstance(declared, Variable) and declared.type is str else "class"
    return None if found.kind == expected else f"is a {found.kind}, not a {expected}"


def _call_fault(declared: FunctionType, found: Member, bindings: Bindings) -> str | None:
    """Of a function, or of a class that is called to make one of it."""
    if found.kind == "method":
        return function_fault(declared, found.reads, bindings)
    name = declared.__name__
    if name not in bindings.classes:
        return f"is a {found.kind}, which cannot be called"
    made = [f"{line.rpartition(' -> ')[0]} -> {name}" for line in bindings.classes[name].members["__init__"].reads]
    return method_fault(declared, made, bindings)


def _module_of(declared: FunctionType | property) -> str | None:
    return getattr(declared.fget if isinstance(declared, property) else declared, "__module__", None)
