"""The dynamic symbols of a shared library, read from the file itself: binutils may not be here."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

SHT_DYNAMIC, SHT_DYNSYM = 6, 11
DT_NEEDED = 1
SHN_UNDEF = 0


@dataclass(frozen=True)
class SharedLibrary:
    """What the loader sees of a 64-bit little-endian ELF file."""

    exported: frozenset[str]
    undefined: frozenset[str]
    needed: tuple[str, ...]


@dataclass(frozen=True)
class _Section:
    kind: int
    link: int
    content: bytes


def read_shared_library(path: Path) -> SharedLibrary:
    data = path.read_bytes()
    if data[:6] != b"\x7fELF\x02\x01":
        raise ValueError(f"{path}: expected a 64-bit little-endian ELF file, it starts with {data[:6]!r}")
    sections = _sections(data)
    symbols = _symbols(sections)
    return SharedLibrary(
        exported=frozenset(name for name, section in symbols if name and section != SHN_UNDEF),
        undefined=frozenset(name for name, section in symbols if name and section == SHN_UNDEF),
        needed=_needed(sections),
    )


def _sections(data: bytes) -> list[_Section]:
    (table,) = struct.unpack_from("<Q", data, 0x28)
    size, count = struct.unpack_from("<HH", data, 0x3A)
    headers = [struct.unpack_from("<IIQQQQI", data, table + i * size) for i in range(count)]
    return [_Section(kind, link, data[at : at + length]) for _, kind, _, _, at, length, link in headers]


def _symbols(sections: list[_Section]) -> list[tuple[str, int]]:
    """Name and section number of every dynamic symbol."""
    (table,) = (section for section in sections if section.kind == SHT_DYNSYM)
    names = sections[table.link].content
    entries = struct.iter_unpack("<IBBHQQ", table.content)
    return [(_text(names, name), section) for name, _, _, section, _, _ in entries]


def _needed(sections: list[_Section]) -> tuple[str, ...]:
    (table,) = (section for section in sections if section.kind == SHT_DYNAMIC)
    names = sections[table.link].content
    return tuple(_text(names, value) for tag, value in struct.iter_unpack("<QQ", table.content) if tag == DT_NEEDED)


def _text(names: bytes, start: int) -> str:
    return names[start : names.index(b"\0", start)].decode()
