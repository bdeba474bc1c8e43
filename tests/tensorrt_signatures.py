"""Whether calls that our protocols declare fit the signatures that pybind11 writes into docstrings."""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np

from describe_tensorrt import Bindings

# Their words for what they take where we hand over one of ours.
TAKEN = {
    bool: ("bool",),
    bytes: ("buffer", "Buffer"),
    int: ("int", "SupportsInt"),
    np.ndarray: ("buffer", "Buffer", "Weights"),
    str: ("str", "FallbackString"),
}
GIVEN = {bool: ("bool",), int: ("int",), str: ("str",), type(None): ("None",)}
SEQUENCES_TAKEN = ("Iterable", "List", "Sequence", "list")
SEQUENCES_GIVEN = ("List", "list")
# For results of which the bindings do not say what they are.
UNTOLD = ("accessor", "object")


@dataclass(frozen=True)
class Parameter:
    """One of a signature's."""

    name: str
    type: str
    is_required: bool


@dataclass(frozen=True)
class Signature:
    """`name(self: X, a: T, b: U = default) -> R`."""

    parameters: tuple[Parameter, ...]
    result: str


def parse_signature(line: str) -> Signature:
    """A line that holds a signature, of a docstring."""
    start, end = line.index("("), line.rindex(") -> ")
    texts = [text for text in _split(line[start + 1 : end]) if text != "/"]
    return Signature(tuple(_parameter(text) for text in texts), line[end + len(") -> ") :].strip())


def method_fault(ours: Callable[..., Any], lines: Sequence[str], bindings: Bindings) -> str | None:
    """Why no overload takes what ours does and gives what ours gives; None where one does."""
    faults = [_overload_fault(ours, parse_signature(line), bindings) for line in lines]
    return None if None in faults else "; ".join(str(fault) for fault in faults) or "has no signature"


def function_fault(ours: Callable[..., Any], lines: Sequence[str], bindings: Bindings) -> str | None:
    """The same of a function, which gets no self."""
    return method_fault(ours, [line.replace("(", "(self: module, ", 1) for line in lines], bindings)


def taken(theirs: str, ours: Any, bindings: Bindings) -> bool:
    """Whether they take one of our type."""
    name, inner = _name(theirs), _inner(theirs)
    if ours in (object, Any):
        return True
    if get_origin(ours) is Sequence:
        (element,) = get_args(ours)
        if name == "Dims":
            return element is int
        return name in SEQUENCES_TAKEN and (inner is None or taken(inner, element, bindings))
    kind = _kind(ours)
    return name in TAKEN[kind] if kind in TAKEN else name in _bases(kind.__name__, bindings)


def given(theirs: str, ours: Any, bindings: Bindings) -> bool:
    """Whether what they give is one of our type."""
    name, inner = _name(theirs), _inner(theirs)
    if ours in (object, Any) or name in UNTOLD:
        return True
    if get_origin(ours) in (Union, types.UnionType):
        return any(given(theirs, each, bindings) for each in get_args(ours))
    if get_origin(ours) is Sequence:
        (element,) = get_args(ours)
        if name == "Dims":
            return element is int
        return name in SEQUENCES_GIVEN and inner is not None and given(inner, element, bindings)
    return name in GIVEN[ours] if ours in GIVEN else ours.__name__ in _bases(name, bindings)


def _overload_fault(ours: Callable[..., Any], theirs: Signature, bindings: Bindings) -> str | None:
    hints = get_type_hints(ours)
    names = list(inspect.signature(ours).parameters)[1:]
    parameters = theirs.parameters[1:]
    missing = [each.name for each in parameters[len(names) :] if each.is_required]
    if missing or len(names) > len(parameters):
        return f"takes ({', '.join(each.name for each in parameters)}), not ({', '.join(names)})"
    for name, parameter in zip(names, parameters, strict=False):
        if parameter.name != name and not re.fullmatch(r"arg\d+", parameter.name):
            return f"calls {name} {parameter.name}"
        if not taken(parameter.type, hints[name], bindings):
            return f"takes {name} as {parameter.type}, not {inspect.formatannotation(hints[name])}"
    if not given(theirs.result, hints["return"], bindings):
        return f"gives {theirs.result}, not {inspect.formatannotation(hints['return'])}"
    return None


def _parameter(text: str) -> Parameter:
    declaration, *default = text.split(" = ", 1)
    name, _, type_name = declaration.partition(": ")
    return Parameter(name, type_name, is_required=not default)


def _split(text: str) -> list[str]:
    """At the commas that are in no brackets. No default of TensorRT's is a text with brackets or commas."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "([{<") - (character in ")]}>")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]


def _name(type_name: str) -> str:
    """`Sequence` of `collections.abc.Sequence[tensorrt.ITensor]`."""
    return re.split(r"\.|::", re.split(r"[\[<]", type_name, maxsplit=1)[0])[-1]


def _inner(type_name: str) -> str | None:
    found = re.fullmatch(r"[^\[]*\[(.*)\]", type_name)
    return found and found[1]


def _kind(ours: Any) -> Any:
    """The class without its arguments. A newer numpy's NDArray is an alias that Python 3.12 leaves as it is."""
    resolved = getattr(get_origin(ours) or ours, "__value__", ours)
    return get_origin(resolved) or resolved


def _bases(class_name: str, bindings: Bindings) -> tuple[str, ...]:
    return bindings.classes[class_name].bases if class_name in bindings.classes else (class_name,)
