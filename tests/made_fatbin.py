"""A shared library's outside with GPU programs in it, without a compiler."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

PTX, CUBIN = 1, 2
ARCHITECTURE_ONLY, FAMILY_ONLY, OTHER_FLAGS = 1 << 20, 1 << 21, 0x8011


@dataclass(frozen=True)
class Entry:
    """One program: `number` is the compute capability, such as 90."""

    kind: int
    number: int
    flags: int = 0


def made_library(*containers: Sequence[Entry], section: bytes = b".nv_fatbin") -> bytes:
    """An ELF file with one section of GPU programs between a section of other bytes and that of names."""
    names = b"\0.text\0" + section + b"\0.shstrtab\0"
    parts = [b"", b"code" * 10, b"\0" * 8 + b"".join(_container(entries) for entries in containers), names]
    name_at = [0, 1, 7, 8 + len(section)]
    header = bytearray(64)
    offsets = [64 + sum(len(part) for part in parts[:index]) for index in range(len(parts))]
    table = offsets[-1] + len(names)
    header[:6] = b"\x7fELF\x02\x01"
    struct.pack_into("<Q", header, 0x28, table)
    struct.pack_into("<HHH", header, 0x3A, 64, len(parts), len(parts) - 1)
    sections = [
        struct.pack("<IIQQQQ24x", name, 1, 0, 0, offset, len(part))
        for name, offset, part in zip(name_at, offsets, parts, strict=True)
    ]
    return bytes(header) + b"".join(parts) + b"".join(sections)


def _container(entries: Sequence[Entry]) -> bytes:
    content = b"".join(_entry(entry) for entry in entries)
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(content)) + content


def _entry(entry: Entry) -> bytes:
    program, header_size = b"\x50\xed\x55\xba" * 4, 64 if entry.kind == CUBIN else 80  # the magic may occur in programs
    flags = entry.flags | OTHER_FLAGS
    header = struct.pack("<HHIQ12xI8xQ", entry.kind, 0x101, header_size, len(program), entry.number, flags)
    return header.ljust(header_size, b"\0") + program
