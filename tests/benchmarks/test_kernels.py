"""The kernel benchmark's command line and who is timed beside whom; what it computes is tested beside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

import kernels
from kernel_cases import Case, Geometry, Group
from kernel_ceilings import Ceilings
from kernel_groups import drafts, verify
from kernel_ops import PoolStore
from kernel_table import Measured, PeerTiming
from kernel_timing import StepGraph
from kernels import NOT_IN_A_GRAPH, Bench, Contenders, Report, chosen_groups, main, measure, run_group
from sparsespec.builder.errors import InputError
from sparsespec.plugins.library import plugin_host_path, plugin_library_path
from sparsespec.plugins.plugin_host import PluginLibrary
from sparsespec.runtime.device.attention_ops import ReferenceAttention
from sparsespec.runtime.device.plugin_ops import PluginAttention

SMALL = Geometry(batch=10, context=1000, num_heads=4, num_kv_heads=2, head_dim=64, num_layers=4)
BENCH = Bench(ReferenceAttention(), PoolStore(), None)


def new_report() -> Report:
    return Report("a GPU", "2.11", "skipped", Ceilings(4000.0, 3800.0), ("note",), [], [], [])


def test_groups_are_chosen_by_name() -> None:
    assert [group.name for group in chosen_groups("mix,draft")] == ["draft", "mix"]
    assert [group.name for group in chosen_groups(None)][:2] == ["decode", "draft"]
    with pytest.raises(InputError, match=r"only: expected some of decode, draft, .*, found 'dram'"):
        chosen_groups("draft,dram")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_one_line_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--only", "draft"]) == 2
    assert capsys.readouterr().err == "error: nothing can be timed here: there is no CUDA device\n"


def test_times_find_their_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cases: ours, a peer in a graph, one that failed, one without a graph, two gathers; then ours alone."""
    graph, eager = StepGraph(print, print), StepGraph(print, print, in_graph=False)
    first = Case("draft", drafts(SMALL), peers=("sparse", "fa2", "fa3"))
    entered = {
        "draft": Contenders(first, graph, (("sparse", graph), ("fa2", "failed"), ("fa3", eager)), (graph, graph)),
        "verify": Contenders(Case("verify", verify(SMALL)), graph, (), ()),
    }
    monkeypatch.setattr(kernels, "enter", lambda _, case: entered[case.name])
    monkeypatch.setattr(kernels, "timed_in_turn", lambda graphs: [4.0 * (index + 1) for index in range(len(graphs))])
    found = measure(BENCH, [each.case for each in entered.values()])
    peers = (PeerTiming("sparse", 2.0), PeerTiming("fa2", None, "failed"), PeerTiming("fa3", 3.0, NOT_IN_A_GRAPH))
    assert found == [Measured(first, 1.0, peers, 4.0), Measured(entered["verify"].case, 6.0)]


def test_a_set_that_fails_costs_no_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def sometimes(_: Bench, cases: Sequence[Case]) -> list[Measured]:
        if cases[0].name == "draft":
            raise RuntimeError("no such\nkernel")
        return [Measured(case, 0.002) for case in cases]

    monkeypatch.setattr(kernels, "measure", sometimes)
    report = new_report()
    group = Group("some", ((Case("draft", drafts(SMALL)),), (Case("verify", verify(SMALL)),)))
    run_group(BENCH, group, report)
    assert report.errors == [f"draft, {SMALL.name}: RuntimeError: no such kernel"]
    assert [row.case for row in report.rows] == ["verify"]
    assert f"error: {report.errors[0]}" in capsys.readouterr().out
    report.write(tmp_path / "kernels.json")
    written = json.loads((tmp_path / "kernels.json").read_text())
    assert written["rows"][0]["gigabytes_per_s"] == report.rows[0].gigabytes_per_s
    assert (written["ceilings"]["read"], written["flashinfer"]) == (4000.0, "skipped")


@pytest.mark.gpu
def test_everything_is_timed_on_a_gpu() -> None:
    ops = PluginAttention(PluginLibrary(plugin_library_path(), plugin_host_path()))
    cases = [
        Case("draft", drafts(SMALL)),
        Case("verify", verify(SMALL, scored=True)),
        Case("plan", verify(SMALL), "plan"),
    ]
    found = measure(Bench(ops, PoolStore(), None), cases)
    assert [each.ms > 0 for each in found] == [True] * 3
    assert (found[0].gather_ms or 0) > 0
