"""Config dataclasses: one declaration gives the JSON reader, the command-line flags and their help."""

from __future__ import annotations

import argparse
import dataclasses
import math
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from sparsespec.builder.errors import InputError

ConfigT = TypeVar("ConfigT")

MAX_INT = 2**31 - 1
_MOST_SHOWN = 200


def option(default: Any, help: str) -> Any:
    """A dataclass field with a default and the help text that its command-line flag shows."""
    return dataclasses.field(default=default, metadata={"help": help})


def required(help: str) -> Any:
    """A dataclass field without a default; its command-line flag is mandatory."""
    return dataclasses.field(metadata={"help": help})


def from_mapping(config_type: type[ConfigT], values: Mapping[str, Any], where: str) -> ConfigT:
    """Build a config from parsed JSON.

    Raises InputError naming `where` and the key, for an unknown key, a missing one, or a value of another type.
    """
    hints = get_type_hints(config_type)
    fields = {field.name: field for field in dataclasses.fields(config_type)}  # type: ignore[arg-type]
    unknown = [key for key in values if key not in fields]
    if unknown:
        raise InputError(f"{where}: unknown key {shown(unknown[0])}; expected one of {', '.join(fields)}")
    missing = [name for name, field in fields.items() if name not in values and _has_no_default(field)]
    if missing:
        raise InputError(f"{where}: missing key {missing[0]!r}")
    parsed = {key: _parse(value, hints[key], f"{where}: {key}") for key, value in values.items()}
    try:
        return config_type(**parsed)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def check_types(config: object) -> None:
    """Raises InputError for a field whose value is not of its declared type; for configs made in Python."""
    for name, hint in get_type_hints(type(config)).items():
        _parse(getattr(config, name), hint, name)


def add_flags(parser: argparse.ArgumentParser, config_type: type[Any]) -> None:
    """Add one `--name` flag per field of `config_type`; defaults and help come from the fields."""
    group = parser.add_argument_group(config_type.__name__, (config_type.__doc__ or "").splitlines()[0])
    hints = get_type_hints(config_type)
    for field in dataclasses.fields(config_type):
        group.add_argument(f"--{field.name}", **_flag_arguments(field, hints[field.name]))


def from_flags(config_type: type[ConfigT], namespace: argparse.Namespace) -> ConfigT:
    """Build a config from the flags that `add_flags` declared."""
    names = [field.name for field in dataclasses.fields(config_type)]  # type: ignore[arg-type]
    values = {name: getattr(namespace, name) for name in names}
    return config_type(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})


def from_strings(config_type: type[ConfigT], texts: Mapping[str, str], where: str) -> ConfigT:
    """Build a config from texts: "true" or "false", a list's items with commas between them, "" for None.

    Raises InputError as `from_mapping` does.
    """
    hints = get_type_hints(config_type)
    values = {key: _read_text(text, hints.get(key, str)) for key, text in texts.items()}
    return from_mapping(config_type, values, where)


def check_range(name: str, value: int, least: int, most: int = MAX_INT) -> None:
    """Raises InputError naming the limit that `value` is beyond."""
    if value < least:
        raise InputError(f"{name} must be at least {least}, found {shown(value)}")
    if value > most:
        raise InputError(f"{name} must be at most {most}, found {shown(value)}")


def to_float(value: int) -> float:
    """Raises InputError for an integer of more digits than a float can hold."""
    try:
        return float(value)
    except OverflowError:
        raise InputError(f"expected a number below 1e308, found one of {_num_digits(value)} digits") from None


def shown(value: object) -> str:
    """What an error says of a value from outside: how Python writes it, but never more than a line."""
    if isinstance(value, int) and abs(value) >= 10**100:  # Python refuses to write those of thousands of digits
        return f"an integer of {_num_digits(value)} digits"
    try:
        text = repr(value)
    except ValueError:  # such an integer within
        return f"a {type(value).__name__} that cannot be written"
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."


def _num_digits(value: int) -> int:
    return int(math.log10(abs(value))) + 1


def _has_no_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _flag_arguments(field: dataclasses.Field[Any], hint: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {"help": field.metadata.get("help", "")}
    if _has_no_default(field):
        arguments["required"] = True
    else:
        arguments["default"] = field.default
        arguments["help"] += " (default: %(default)s)"
    base = _without_none(hint)
    if base is bool:
        return arguments | {"action": argparse.BooleanOptionalAction}
    if get_origin(base) is Literal:
        return arguments | {"choices": get_args(base)}
    if get_origin(base) is tuple:
        if "default" in arguments:
            arguments["default"] = list(arguments["default"])
        # Repeated flags add up, but not to a default that they are meant to replace.
        action = "store" if arguments.get("default") else "extend"
        return arguments | {"nargs": "+", "action": action, "type": get_args(base)[0], "metavar": "X"}
    return arguments | {"type": base, "metavar": {int: "N", float: "F"}.get(base, "S")}


def _without_none(hint: Any) -> Any:
    bases = [base for base in _options(hint) if base is not type(None)]
    return bases[0] if len(bases) == 1 else Union[tuple(bases)]  # noqa: UP007


def _options(hint: Any) -> tuple[Any, ...]:
    """What a union is of; the type itself for any other."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _parse_config(value: Any, configs: Sequence[type[Any]], where: str) -> Any:
    """A nested config; of several, the one whose first field, a Literal, has the value found."""
    if type(value) in configs:
        return value
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected an object, found {shown(value)}")
    tag = dataclasses.fields(configs[0])[0].name
    fitting = [config for config in configs if value.get(tag) in get_args(get_type_hints(config)[tag])]
    if len(configs) > 1 and not fitting:
        expected = [name for config in configs for name in get_args(get_type_hints(config)[tag])]
        raise InputError(f"{where}: {tag}: expected one of {', '.join(expected)}, found {shown(value.get(tag))}")
    return from_mapping((fitting or configs)[0], value, where)


def _read_text(text: str, hint: Any) -> Any:
    """What a text says, for `_parse` to check; the text itself where it says no such thing."""
    base = _without_none(hint)
    if not text and type(None) in _options(hint):
        return None
    if get_origin(base) is tuple:
        return [_read_text(item, get_args(base)[0]) for item in text.split(",")]
    if base is bool:
        return {"true": True, "false": False}.get(text, text)
    if base in (int, float, Path):
        try:
            return base(text)
        except ValueError:
            return text
    return text


def _parse(value: Any, hint: Any, where: str) -> Any:
    base = _without_none(hint)
    if value is None and type(None) in _options(hint):
        return None
    configs = [kind for kind in _options(base) if isinstance(kind, type) and dataclasses.is_dataclass(kind)]
    if configs:
        return _parse_config(value, configs, where)
    if get_origin(base) is Literal:
        if not any(type(value) is type(choice) and value == choice for choice in get_args(base)):
            raise InputError(f"{where}: expected one of {', '.join(map(str, get_args(base)))}, found {shown(value)}")
        return value
    if get_origin(base) is tuple:
        if not isinstance(value, (list, tuple)):
            raise InputError(f"{where}: expected a list, found {shown(value)}")
        return tuple(_parse(item, get_args(base)[0], where) for item in value)
    if base is float and type(value) is int:
        try:
            return to_float(value)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
    # A path is always of a class of its platform.
    if type(value) is not base and not (base is Path and isinstance(value, Path)):
        raise InputError(f"{where}: expected {base.__name__}, found {shown(value)}")
    return value
