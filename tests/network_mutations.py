"""A recorded network with one layer changed, as a mistake in the lowering would change it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from engine_steps import MODEL
from recorded_network import Call, Recording
from recorded_ops import Op, Plugin, Shuffle
from sparsespec.builder.build_config import DType
from sparsespec.builder.model_config import Family, ModelConfig

Pick = Callable[[Call], bool]
Change = Callable[[Recording, Call], Call]


@dataclass(frozen=True)
class Mutation:
    """One call changed, in the verify engine of a model."""

    label: str
    pick: Pick
    change: Change
    nth: int = 0  # of the calls that are picked
    family: Family = "llama"
    dtype: DType = "float32"
    model: ModelConfig = MODEL
    shows_in: str = "logits"


def mutated(recording: Recording, mutation: Mutation) -> Recording:
    """All of it as it was but for one call."""
    picked = [place for place, call in enumerate(recording.calls) if mutation.pick(call)]
    place = picked[mutation.nth]
    changed = mutation.change(recording, recording.calls[place])
    return replace(recording, calls=(*recording.calls[:place], changed, *recording.calls[place + 1 :]))


def named(name: str) -> Pick:
    """The layer of that name."""
    return lambda call: call.name == name


def starts(start: str) -> Pick:
    """Layers whose names start so."""
    return lambda call: call.name.startswith(start)


def kind(kind: type[Op]) -> Pick:
    """Layers of that kind."""
    return lambda call: isinstance(call.op, kind)


def plugin(name: str) -> Pick:
    """Layers of that plugin."""
    return lambda call: isinstance(call.op, Plugin) and call.op.name == name


def same(op: Op) -> Pick:
    """Layers that do just that."""
    return lambda call: call.op == op


def dropped() -> Change:
    """The first operand goes on as it is."""
    return lambda _, call: replace(call, op=Shuffle(), inputs=call.inputs[:1])


def becomes(op: Op) -> Change:
    """Another layer for the same tensors."""
    return lambda _, call: replace(call, op=op)


def takes(place: int, name: str) -> Change:
    """Another input."""

    def change(recording: Recording, call: Call) -> Call:
        inputs = (*call.inputs[:place], recording.number(name), *call.inputs[place + 1 :])
        return replace(call, inputs=inputs)

    return change


def exchanges(place: int, other: int) -> Change:
    """Two inputs in each other's places."""

    def change(_: Recording, call: Call) -> Call:
        inputs = list(call.inputs)
        inputs[place], inputs[other] = inputs[other], inputs[place]
        return replace(call, inputs=tuple(inputs))

    return change


def has_field(name: str, value: int | float | str) -> Change:
    """Another field of a plugin."""

    def change(_: Recording, call: Call) -> Call:
        assert isinstance(call.op, Plugin)
        assert name in dict(call.op.fields)
        return replace(call, op=replace(call.op, fields=tuple({**dict(call.op.fields), name: value}.items())))

    return change
