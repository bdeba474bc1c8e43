from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import pytest

from sparsespec.builder.config_io import (
    add_flags,
    check_types,
    from_flags,
    from_mapping,
    from_strings,
    option,
    required,
)
from sparsespec.builder.errors import InputError


@dataclass(frozen=True)
class Sample:
    """A config of every kind of field."""

    name: str = required("who")
    count: int = option(3, "how many")
    ratio: float = option(0.5, "which part")
    mode: Literal["fast", "slow"] = option("fast", "which way")
    loud: bool = option(False, "whether")
    ids: tuple[int, ...] = option((), "which ones")
    path: Path | None = option(None, "where")


@dataclass(frozen=True)
class Circle:
    kind: Literal["circle"]
    radius: float

    def __post_init__(self) -> None:
        if self.radius < 0:
            raise InputError(f"radius must not be negative, found {self.radius}")


@dataclass(frozen=True)
class Square:
    kind: Literal["square", "box"]
    side: int = 1


Shape = Circle | Square


@dataclass(frozen=True)
class Drawing:
    """A config of configs."""

    outline: Shape
    hole: Shape | None = None
    inner: Sample | None = None
    tags: tuple[str, ...] = ()


def parse(*arguments: str) -> Sample:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_flags(parser, Sample)
    return from_flags(Sample, parser.parse_args(arguments))


def test_mapping_gives_defaults_and_converts_lists_and_whole_floats() -> None:
    sample = from_mapping(Sample, {"name": "a", "ids": [1, 2], "ratio": 1, "path": None}, "here")
    assert sample == Sample("a", ratio=1.0, ids=(1, 2))
    assert type(sample.ratio) is float


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "here: missing key 'name'"),
        ({"name": "a", "nmae": "b"}, "here: unknown key 'nmae'"),
        ({"name": "a", "count": "3"}, "here: count: expected int, found '3'"),
        ({"name": "a", "count": True}, "here: count: expected int, found True"),
        ({"name": "a", "mode": "medium"}, "here: mode: expected one of fast, slow, found 'medium'"),
        ({"name": "a", "ids": 7}, "here: ids: expected a list, found 7"),
        ({"name": "a", "ids": [1, "x"]}, "here: ids: expected int, found 'x'"),
        ({"name": "a", "ratio": 10**400}, "here: ratio: expected a number below 1e308, found one of 401 digits"),
        ({"name": "a", "count": None}, "here: count: expected int, found None"),
    ],
)
def test_mapping_errors_name_the_place_and_the_key(values: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as error:
        from_mapping(Sample, values, "here")
    assert str(error.value).startswith(message)


def test_texts_are_read_by_their_fields_types() -> None:
    texts = {"name": "7", "count": "5", "ratio": "2", "loud": "true", "ids": "1,2", "mode": "slow", "path": "p"}
    expected = Sample("7", count=5, ratio=2.0, loud=True, ids=(1, 2), mode="slow", path=Path("p"))
    assert from_strings(Sample, texts, "here") == expected
    assert from_strings(Sample, {"name": "", "path": ""}, "here") == Sample("", path=None)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({}, "here: missing key 'name'"),
        ({"name": "a", "nmae": "b"}, "here: unknown key 'nmae'"),
        ({"name": "a", "count": "many"}, "here: count: expected int, found 'many'"),
        ({"name": "a", "count": "1.0"}, "here: count: expected int, found '1.0'"),
        ({"name": "a", "count": ""}, "here: count: expected int, found ''"),
        ({"name": "a", "count": "9" * 5000}, "here: count: expected int, found '9999"),
        ({"name": "a", "ratio": "half"}, "here: ratio: expected float, found 'half'"),
        ({"name": "a", "loud": "yes"}, "here: loud: expected bool, found 'yes'"),
        ({"name": "a", "mode": "medium"}, "here: mode: expected one of fast, slow, found 'medium'"),
        ({"name": "a", "ids": "1,x"}, "here: ids: expected int, found 'x'"),
        ({"name": "a", "ids": ""}, "here: ids: expected int, found ''"),
    ],
)
def test_texts_that_cannot_be_read_are_named(texts: dict[str, str], message: str) -> None:
    with pytest.raises(InputError) as error:
        from_strings(Sample, texts, "here")
    assert str(error.value).startswith(message)


def test_nested_configs_are_chosen_by_their_tag() -> None:
    outline, hole, inner = {"kind": "circle", "radius": 2}, {"kind": "box"}, {"name": "a", "ids": [1]}
    expected = Drawing(Circle("circle", 2.0), Square("box", 1), Sample("a", ids=(1,)))
    assert from_mapping(Drawing, {"outline": outline, "hole": hole, "inner": inner}, "here") == expected
    assert from_mapping(Drawing, {"outline": outline, "hole": None}, "here") == Drawing(Circle("circle", 2.0))


def test_nested_configs_survive_json() -> None:
    drawing = Drawing(Square("square", 3), Circle("circle", 0.5), Sample("a", path=None), tags=("x",))
    assert from_mapping(Drawing, json.loads(json.dumps(asdict(drawing))), "here") == drawing


def test_nested_configs_of_python_pass_the_check_of_types() -> None:
    check_types(Drawing(Circle("circle", 2.0), Square("box")))
    with pytest.raises(InputError, match="hole: expected an object, found 7"):
        check_types(Drawing(Circle("circle", 2.0), 7))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("outline", "message"),
    [
        (None, "here: outline: expected an object, found None"),
        ([], "here: outline: expected an object, found []"),
        ({}, "here: outline: kind: expected one of circle, square, box, found None"),
        ({"kind": ["circle"]}, "here: outline: kind: expected one of circle, square, box, found ['circle']"),
        ({"kind": "box", "radius": 1.0}, "here: outline: unknown key 'radius'; expected one of kind, side"),
        ({"kind": "circle"}, "here: outline: missing key 'radius'"),
        ({"kind": "circle", "radius": "1"}, "here: outline: radius: expected float, found '1'"),
        ({"kind": "circle", "radius": -1}, "here: outline: radius must not be negative, found -1.0"),
    ],
    ids=str,
)
def test_errors_of_nested_configs_name_the_way_to_them(outline: object, message: str) -> None:
    with pytest.raises(InputError) as error:
        from_mapping(Drawing, {"outline": outline}, "here")
    assert str(error.value) == message


def test_flags_cover_every_field() -> None:
    numbers = ["--count", "4", "--ratio", "0.25", "--ids", "1", "2"]
    assert parse("--name", "a", "--mode", "slow", "--loud", "--path", "x/y", *numbers) == Sample(
        "a", 4, 0.25, "slow", True, (1, 2), Path("x/y")
    )
    assert parse("--name", "a") == Sample("a")
    assert parse("--name", "a", "--ids", "1", "2", "--ids", "3") == Sample("a", ids=(1, 2, 3))


@pytest.mark.parametrize("arguments", [(), ("--name", "a", "--mode", "x"), ("--name", "a", "--coun", "4")])
def test_bad_flags_exit_with_2(arguments: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(*arguments)
    assert stop.value.code == 2
