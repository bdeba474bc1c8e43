"""Which GPUs a shared library has programs for, read from the file itself: the CUDA toolkit may not be here.

The section `.nv_fatbin` holds containers of entries. An entry is a program for one compute capability: machine code
("cubin", ELF) or PTX, which the driver compiles at its first use. `cuobjdump --list-elf --list-ptx` tells the same.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Capability = tuple[int, int]  # such as (9, 0)

_ELF64 = b"\x7fELF\x02\x01"  # of 64 bits, little-endian
_SECTION = b".nv_fatbin\0"
_CONTAINER = struct.pack("<I", 0xBA55ED50)
_CONTAINER_HEADER = struct.Struct("<IHHQ")  # magic, version, bytes of this header, bytes of the entries
_ENTRY_HEADER = struct.Struct("<HHIQ12xI8xQ")  # kind, version, bytes of this header, of the program; number; flags
_PTX, _CUBIN = 1, 2
_ARCHITECTURE_ONLY, _FAMILY_ONLY = 1 << 20, 1 << 21  # flags: compiled for 90a, 100f ...


class FatbinError(ValueError):
    """The file is not a shared library, or its GPU programs cannot be listed."""


@dataclass(frozen=True)
class GpuProgram:
    """The programs of one kind and one compute capability."""

    kind: Literal["cubin", "ptx"]
    capability: Capability
    suffix: Literal["", "a", "f"]  # a: for this capability alone; f: for its family

    def serves(self, capability: Capability) -> bool:
        """Whether it runs on a GPU of this compute capability."""
        if self.suffix == "a":
            return capability == self.capability
        same_family = capability[0] == self.capability[0] and capability[1] >= self.capability[1]
        return same_family or (self.kind == "ptx" and not self.suffix and capability > self.capability)

    def __str__(self) -> str:
        name = f"{self.capability[0]}{self.capability[1]}{self.suffix}"
        return f"sm_{name}" if self.kind == "cubin" else f"PTX of compute_{name}"


def gpu_programs(path: Path) -> tuple[GpuProgram, ...]:
    """Every kind and compute capability that the library has programs for, once each, ascending.

    FatbinError for a file that is no shared library or is damaged; none for a library without GPU programs.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as library:
            if library[: len(_ELF64)] != _ELF64:
                raise FatbinError(f"{path}: expected a 64-bit little-endian ELF file, found another")
            programs = dict.fromkeys(_programs(library))
    except (OSError, ValueError, OverflowError, struct.error) as error:
        if isinstance(error, FatbinError):
            raise
        raise FatbinError(f"{path}: expected a shared library, found something else: {error}") from error
    return tuple(sorted(programs, key=lambda program: (program.kind, program.capability, program.suffix)))


def program_for(programs: tuple[GpuProgram, ...], capability: Capability) -> GpuProgram | None:
    """What a GPU of this compute capability runs: machine code before PTX, then what is closest to it."""
    serving = [program for program in programs if program.serves(capability)]
    return max(serving, key=lambda program: (program.kind == "cubin", program.capability, program.suffix), default=None)


def _programs(library: mmap.mmap) -> Iterator[GpuProgram]:
    at, end = _fatbin_section(library)
    while (at := library.find(_CONTAINER, at, end)) >= 0:
        _, _, header_size, size = _CONTAINER_HEADER.unpack_from(library, at)
        entry, at = at + header_size, at + max(_CONTAINER_HEADER.size, header_size + size)
        if at > end:
            raise ValueError(f"a container of GPU programs ends {at - end} bytes beyond its section")
        while entry < at:
            kind, _, header_size, size, number, flags = _ENTRY_HEADER.unpack_from(library, entry)
            if kind in (_PTX, _CUBIN):
                yield GpuProgram("ptx" if kind == _PTX else "cubin", (number // 10, number % 10), _suffix(flags))
            entry += max(_ENTRY_HEADER.size, header_size + size)


def _suffix(flags: int) -> Literal["", "a", "f"]:
    if flags & _ARCHITECTURE_ONLY:
        return "a"
    return "f" if flags & _FAMILY_ONLY else ""


def _fatbin_section(library: mmap.mmap) -> tuple[int, int]:
    """Where the section begins and ends in the file; nowhere if there is none."""
    (table,) = struct.unpack_from("<Q", library, 0x28)
    header_size, count, names_index = struct.unpack_from("<HHH", library, 0x3A)
    headers = [struct.unpack_from("<I20xQQ", library, table + index * header_size) for index in range(count)]
    if names_index >= count:
        raise ValueError(f"section {names_index} should hold the names of {count} sections")
    names = headers[names_index][1]
    for name, offset, size in headers:
        if library[names + name : names + name + len(_SECTION)] == _SECTION:
            if offset + size > len(library):
                raise ValueError(f"the section of GPU programs ends {offset + size - len(library)} bytes beyond it")
            return offset, offset + size
    return 0, 0
