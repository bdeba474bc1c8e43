"""The tool that counts what kernels do: its cases, and how it reads ncu's table."""

from __future__ import annotations

import pytest
import torch

from kernel_counters import COUNTERS, KERNELS, cases, line, main, parsed
from kernel_groups import groups
from sparsespec.builder.errors import InputError

FIXED = ("ID", "Kernel Name")


def quoted(values: list[str]) -> str:
    return ",".join(f'"{value}"' for value in values)


def ncu_table(names: list[str]) -> list[str]:
    """As ncu prints it, with what it says besides. Counter i of launch n is 1000 (n + 1) + i and a half."""
    rows = [
        quoted(
            [str(number), f"void sparsespec::{name}<Kind<8, 64>>(Params)"]
            + [f"{number + 1},{index:03}.50" for index in range(len(COUNTERS))]
        )
        for number, name in enumerate(names)
    ]
    return ["==PROF== Connected", quoted([*FIXED, *COUNTERS]), quoted(["", "", "ns", *["%"] * 7]), *rows]


def test_every_launch_finds_its_case() -> None:
    expected = [(case.workload.geometry.name, case.name, kernel) for case in cases() for kernel in KERNELS]
    found = parsed(ncu_table([kernel for _, _, kernel in expected]))
    assert [(each.geometry, each.case, each.kernel) for each in found] == expected
    for number, each in enumerate(found):
        assert each.counters == {name: 1000 * number + 1000.5 + index for index, name in enumerate(COUNTERS.values())}
    assert "1.0 us  memory 1002%" in line(found[0])


@pytest.mark.parametrize("names", [[], ["append_kernel"], ["unite_kernel"] * 3])
def test_other_launches_are_an_error(names: list[str]) -> None:
    with pytest.raises(InputError, match=r"ncu: expected \d+ launches, append_kernel, .*, found"):
        parsed(ncu_table(names))


def test_cases_are_those_of_the_benchmark() -> None:
    """But for the layers."""
    known = {
        (case.workload.geometry.name, case.workload.phases, case.workload.num_rows, case.workload.scored)
        for group in groups()
        for cases_of_set in group.sets
        for case in cases_of_set
    }
    for case in cases():
        workload = case.workload
        assert (workload.geometry.name, workload.phases, workload.num_rows, workload.scored) in known
        assert workload.geometry.num_layers == workload.geometry.num_pools == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_one_line_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert capsys.readouterr().err == "error: nothing can be counted here: there is no CUDA device\n"
