from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from sparsespec.builder.config_io import add_flags, from_flags, from_mapping, option, required
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
