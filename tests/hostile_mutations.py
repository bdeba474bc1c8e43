"""Damage to inputs: every choice comes from a seeded generator, so that a target's name and a number give an input."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any

ODD_INTEGERS = (0, 1, -1, 2, 7, 255, 65536, 2**31 - 1, 2**31, -(2**31), 2**32, 2**40, 2**63 - 1, 2**63, 2**64 - 1)
ODD_FLOATS = (0.0, -0.0, 0.5, 1.0, 1.5, -1.0, 5e-324, 1e-38, 1e38, 1e308, float("inf"), float("-inf"), float("nan"))
ODD_TEXTS = (
    "",
    " ",
    "auto",
    "llama",
    "float32",
    "é€😀",
    "\ud800",
    "a\0b",
    "../../etc/passwd",
    "/",
    "..",
    "x" * 300,
    "%s{}\\",
    "y" * 5000,
)
_RAW_NUMBERS = ("1e400", "-1e400", "9" * 400, "9" * 4000, "9" * 6000, "NaN", "-Infinity", "1E-400", "-0", "0.1e1")
_RAW_PLACE = "raw number goes here"


def odd_value(random: Random, depth: int = 0) -> Any:
    """A value that JSON can say, most of them of the wrong type or size."""
    choices: tuple[Callable[[], Any], ...] = (
        lambda: None,
        lambda: random.choice((True, False)),
        lambda: random.choice(ODD_INTEGERS),
        lambda: random.randint(-10, 300),
        lambda: 10 ** random.choice((20, 310, 4000)),
        lambda: random.choice(ODD_FLOATS),
        lambda: random.choice(ODD_TEXTS),
        lambda: _RAW_PLACE,
        lambda: [odd_value(random, depth + 1) for _ in range(random.randint(0, 3) if depth < 3 else 0)],
        lambda: {random.choice(ODD_TEXTS): odd_value(random, depth + 1)} if depth < 3 else {},
        lambda: [[]] * 200,
    )
    return random.choice(choices)()


def damaged_json(document: Any, random: Random, more_keys: Sequence[str] = ()) -> bytes:
    """The document as JSON after one to three changes; `more_keys` may be added to it."""
    copy = json.loads(json.dumps(document))
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        _change(copy, random, more_keys)
    text = json.dumps(copy, ensure_ascii=random.random() < 0.9)
    while f'"{_RAW_PLACE}"' in text:
        text = text.replace(f'"{_RAW_PLACE}"', random.choice(_RAW_NUMBERS), 1)
    if random.random() < 0.05:
        return _damaged_text(text.encode("utf-8", "surrogatepass"), random)
    return text.encode("utf-8", "surrogatepass")


def with_damaged_section(
    document: Mapping[str, Any], name: str, random: Random, more_keys: Sequence[str] = ()
) -> bytes:
    """The document as JSON whose section `name`, and nothing else, is damaged."""
    place = "section goes here"
    text = json.dumps({**document, name: place})
    return text.encode().replace(f'"{place}"'.encode(), damaged_json(document[name], random, more_keys))


def with_other_values(document: Mapping[str, Any], name: str, random: Random, words: Sequence[str]) -> bytes:
    """The document as JSON with other values, of the same types, at one or two keys of the section `name`."""
    section = dict(document[name])
    for key in random.sample(list(section), random.choice((1, 1, 2))):
        section[key] = _other_value(section[key], random, words)
    return json.dumps({**document, name: section}).encode()


def _other_value(value: Any, random: Random, words: Sequence[str]) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int) or value is None:
        near = value or 1
        return random.choice((*ODD_INTEGERS, near - 1, near + 1, 2 * near, near // 2, None))
    if isinstance(value, float):
        return random.choice(ODD_FLOATS)
    if isinstance(value, str):
        return random.choice((*words, *words, *ODD_TEXTS))
    return random.choice(([], [0], [0, 1], [2**40]))


def damaged_bytes(data: bytes, random: Random) -> bytes:
    """The bytes after flips, a splice, a cut or an insertion."""
    changed = bytearray(data)
    at, other = random.randrange(len(data)), random.randrange(len(data))
    length = min(random.choice((1, 4, 8, 64, 1000)), len(data) - max(at, other))
    kind = random.randrange(6)
    if kind == 0:
        for _ in range(random.choice((1, 1, 2, 8, 64))):
            changed[random.randrange(len(data))] ^= 1 << random.randrange(8)
    elif kind == 1:
        changed[at : at + length] = data[other : other + length]
    elif kind == 2:
        del changed[at:]
    elif kind == 3:
        del changed[at : at + length]
    elif kind == 4:
        changed[at:at] = random.randbytes(length)
    else:
        changed[at : at + 8] = (random.choice(ODD_INTEGERS) % 2**64).to_bytes(8, "little")
    return bytes(changed)


def _damaged_text(text: bytes, random: Random) -> bytes:
    bombs: tuple[Callable[[], bytes], ...] = (
        lambda: b"[" * 100_000,
        lambda: b'{"a":' * 100_000,
        lambda: b'{"model_type":' + b"[" * 5000 + b"]" * 5000 + b"}",
        lambda: b"",
        lambda: b"\xff\xfe" + text,
        lambda: b"\xef\xbb\xbf" + text,
        lambda: text[: random.randrange(len(text))],
        lambda: b"null",
        lambda: b"[]",
        lambda: b'"' + b"z" * 100_000 + b'"',
        lambda: damaged_bytes(text, random),
        lambda: text[:-1] + b', "' + b"k" * 10_000 + b'": 1}',
        lambda: text.replace(b"{", b'{"format": 1, "model_type": "qwen3", "format": "x", ', 1),
    )
    return random.choice(bombs)()


def _change(document: Any, random: Random, more_keys: Sequence[str]) -> None:
    """One change at a random place of the document."""
    place = document
    while isinstance(place, dict | list) and place:
        key = random.choice(list(place) if isinstance(place, dict) else list(range(len(place))))
        deeper = isinstance(place[key], dict | list) and place[key] and random.random() < 0.8
        if not deeper:
            break
        place = place[key]
    if isinstance(place, dict) and more_keys and random.random() < 0.3:
        place[random.choice(more_keys)] = odd_value(random)
    elif place:
        _change_at(place, key, random)


def _change_at(place: Any, key: Any, random: Random) -> None:
    kind = random.randrange(8)
    if kind == 0:
        del place[key]
    elif kind == 1:
        place[key] = [place[key]]
    elif kind == 2:
        place[key] = {str(key): place[key]}
    elif kind == 3 and isinstance(place, dict):
        place[random.choice((*ODD_TEXTS, str(key) * 3))] = place.pop(key)
    elif kind == 4:
        place[key] = place[random.choice(list(place))] if isinstance(place, dict) else None
    elif kind == 5 and type(place[key]) is int:
        place[key] += random.choice((-1, 1, 2**20))
    else:
        place[key] = odd_value(random)
