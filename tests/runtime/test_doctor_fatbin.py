"""Which GPUs a library has programs for: made files, the compiled plugins, damaged files."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from random import Random

import pytest

from built_plugins import built
from made_fatbin import ARCHITECTURE_ONLY, CUBIN, FAMILY_ONLY, PTX, Entry, made_library
from sparsespec.plugins.library import build_info, plugin_host_path, plugin_library_path
from sparsespec.runtime.doctor.fatbin import FatbinError, GpuProgram, gpu_programs, program_for

SM_80, SM_90A, SM_100F = Entry(CUBIN, 80), Entry(CUBIN, 90, ARCHITECTURE_ONLY), Entry(CUBIN, 100, FAMILY_ONLY)
PTX_80 = Entry(PTX, 80)


def programs_of(tmp_path: Path, content: bytes) -> tuple[GpuProgram, ...]:
    path = tmp_path / "made.so"
    path.write_bytes(content)
    return gpu_programs(path)


def names_of(tmp_path: Path, content: bytes) -> list[str]:
    return [str(program) for program in programs_of(tmp_path, content)]


def test_every_program_is_listed_once(tmp_path: Path) -> None:
    library = made_library([PTX_80, SM_100F, SM_80], [SM_80, SM_90A, Entry(CUBIN, 121)], [Entry(64, 75)])
    assert names_of(tmp_path, library) == ["sm_80", "sm_90a", "sm_100f", "sm_121", "PTX of compute_80"]


def test_a_library_without_programs(tmp_path: Path) -> None:
    assert names_of(tmp_path, made_library([SM_80], section=b".nv_something")) == []
    assert names_of(tmp_path, made_library()) == []


@pytest.mark.parametrize("content", [b"", b"\x7fELF", b"\x7fELF\x01\x01" + bytes(100), b"no library\n" * 100])
def test_files_that_are_no_libraries(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(FatbinError, match=r"made\.so: expected a"):
        programs_of(tmp_path, content)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FatbinError, match=r"absent\.so"):
        gpu_programs(tmp_path / "absent.so")


def test_a_container_that_ends_beyond_its_section(tmp_path: Path) -> None:
    library = made_library([SM_80]).replace(b"\x01\x00\x10\x00\x50", b"\x01\x00\x10\x00\x51")
    with pytest.raises(FatbinError, match="ends 1 bytes beyond its section"):
        programs_of(tmp_path, library)


def test_damaged_libraries_are_refused_or_read(tmp_path: Path) -> None:
    whole, random = made_library([PTX_80, SM_80, SM_90A], [SM_100F]), Random(0)
    refused = 0
    for _ in range(500):
        damaged = bytearray(whole[: random.choice([len(whole), random.randrange(1, len(whole))])])
        for _ in range(random.randrange(4)):
            damaged[random.randrange(len(damaged))] = random.choice([0, 1, 255, random.randrange(256)])
        try:
            programs_of(tmp_path, bytes(damaged))
        except FatbinError:
            refused += 1
    print(f"{refused} of 500 refused")
    assert 0 < refused < 500


@pytest.mark.parametrize(
    ("entry", "served", "unserved"),
    [
        (SM_80, [(8, 0), (8, 6), (8, 9)], [(7, 5), (9, 0)]),
        (Entry(CUBIN, 89), [(8, 9)], [(8, 6), (9, 0)]),
        (SM_90A, [(9, 0)], [(8, 9), (10, 0)]),
        (SM_100F, [(10, 0), (10, 3)], [(9, 0), (11, 0), (12, 0)]),
        (PTX_80, [(8, 0), (8, 9), (9, 0), (12, 1)], [(7, 5)]),
        (Entry(PTX, 90, ARCHITECTURE_ONLY), [(9, 0)], [(10, 0)]),
        (Entry(PTX, 100, FAMILY_ONLY), [(10, 0), (10, 3)], [(9, 0), (12, 0)]),
    ],
)
def test_who_is_served(
    tmp_path: Path, entry: Entry, served: list[tuple[int, int]], unserved: list[tuple[int, int]]
) -> None:
    (program,) = programs_of(tmp_path, made_library([entry]))
    assert [capability for capability in served + unserved if program.serves(capability)] == served


def test_machine_code_comes_before_ptx(tmp_path: Path) -> None:
    library = made_library([SM_80, Entry(CUBIN, 86), Entry(PTX, 89), PTX_80, SM_90A, Entry(CUBIN, 90)])
    programs = programs_of(tmp_path, library)
    chosen = [str(program_for(programs, capability)) for capability in [(8, 0), (8, 9), (9, 0), (12, 0), (7, 5)]]
    assert chosen == ["sm_80", "sm_86", "sm_90a", "PTX of compute_89", "None"]


def test_the_compiled_plugins_hold_what_they_were_compiled_for() -> None:
    names = [str(program) for program in gpu_programs(built(plugin_library_path))]
    expected = []
    for architecture in build_info().cuda_architectures:
        number, _, kind = architecture.partition("-")
        expected += [f"sm_{number}"] * (kind != "virtual") + [f"PTX of compute_{number}"] * (kind != "real")
    print(names)
    assert sorted(names) == sorted(expected)
    assert gpu_programs(built(plugin_host_path)) == ()


@pytest.mark.skipif(shutil.which("cuobjdump") is None, reason="needs cuobjdump")
def test_cuobjdump_lists_the_same() -> None:
    path = built(plugin_library_path)
    done = subprocess.run(["cuobjdump", "--list-elf", str(path)], capture_output=True, text=True, check=True)
    listed = list(dict.fromkeys(line.split(".")[-2] for line in done.stdout.splitlines() if line.startswith("ELF")))
    assert sorted(listed) == sorted(str(each) for each in gpu_programs(path) if each.kind == "cubin")
