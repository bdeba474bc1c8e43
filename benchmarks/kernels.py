"""How fast PillarAttention, PillarPlan and PillarSelect run, next to what this GPU's memory gives and to FlashInfer.

    python benchmarks/kernels.py --json kernels.json
    python benchmarks/kernels.py --only draft,mix --no_peers

A step is one PillarPlan and a PillarAttention for each layer of a model, in a CUDA graph; "ms" is the graph's time over
its layers, so planning, appending and what puts parts together are in. Layers take pools in turn that together are far
larger than the L2 cache. Our graphs and FlashInfer's are replayed in turn. FlashInfer has planned on the host before,
neither rotates nor appends, and where it is sparse all heads read the same tokens. GB/s counts each key and value once
per KV head, and scores; "of read" and "of gather" are shares of ceilings measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from kernel_cases import Case, Group, PeerKind
from kernel_ceilings import Ceilings, device_ceilings, gather_works
from kernel_groups import groups
from kernel_ops import PoolStore, fp8_error, num_timed_layers, our_step
from kernel_peers import ERROR_LENGTH, FlashInfer, captured_or_eager, open_flashinfer
from kernel_steps import PreparedStep, prepare
from kernel_table import Measured, PeerTiming, Row, line, remarks, spreads, table
from kernel_timing import StepGraph, captured, timed_in_turn
from sparsespec.builder.errors import InputError, one_line
from sparsespec.builder.terminal import run_tool
from sparsespec.plugins.library import plugin_host_path, plugin_library_path
from sparsespec.plugins.plugin_host import PluginLibrary
from sparsespec.runtime.device.attention_ops import AttentionOps
from sparsespec.runtime.device.plugin_ops import PluginAttention

NOTES = tuple((__doc__ or "").split("\n\n")[-1].splitlines())
NOT_IN_A_GRAPH = "enqueued from the host: no graph took it"


@dataclass(frozen=True)
class Bench:
    """What every set of cases needs."""

    ops: AttentionOps
    store: PoolStore
    flashinfer: FlashInfer | None


@dataclass(frozen=True)
class Contenders:
    """What is timed for one case."""

    case: Case
    ours: StepGraph
    peers: tuple[tuple[PeerKind, StepGraph | str], ...]  # or the error
    gathers: tuple[StepGraph, ...]

    @property
    def graphs(self) -> list[StepGraph]:
        """Ours first."""
        return [self.ours, *(each for _, each in self.peers if isinstance(each, StepGraph)), *self.gathers]


def enter(bench: Bench, case: Case) -> Contenders:
    """Prepared, compiled and captured."""
    with torch.device("cuda"):  # not around FlashInfer, which counts on torch's own default
        kv = bench.store.pools(case.workload.geometry, case.workload.kv_dtype)
        prepared = prepare(case.workload, kv)
        ours = our_step(bench.ops, case.op, prepared)
        gathers = gather_works(prepared) if case.drafts_only else []
    library = bench.flashinfer
    return Contenders(
        case=case,
        ours=captured(ours),
        peers=() if library is None else tuple((kind, _peer(library, kind, prepared)) for kind in case.peers),
        gathers=tuple(captured(work) for work in gathers),
    )


def _peer(library: FlashInfer, kind: PeerKind, prepared: PreparedStep) -> StepGraph | str:
    try:
        return captured_or_eager(library.step(kind, prepared))
    except Exception as error:  # whatever goes wrong in there, our own figures can do without
        return _error_line(error)


def measure(bench: Bench, cases: Sequence[Case]) -> list[Measured]:
    """All of a set, in turn."""
    entered = [enter(bench, case) for case in cases]
    times = iter(timed_in_turn([graph for each in entered for graph in each.graphs]))
    return [_measured(bench, each, [next(times) for _ in each.graphs]) for each in entered]


def _measured(bench: Bench, entered: Contenders, times: Sequence[float]) -> Measured:
    """times: of entered.graphs, in milliseconds."""
    case, layers, rest = entered.case, entered.case.workload.geometry.num_layers, iter(times)
    ours = next(rest) / num_timed_layers(case.op, case.workload.geometry)
    peers = tuple(
        PeerTiming(kind, None, graph)
        if isinstance(graph, str)
        else PeerTiming(kind, next(rest) / layers, None if graph.in_graph else NOT_IN_A_GRAPH)
        for kind, graph in entered.peers
    )
    gather = min(rest, default=None)
    return Measured(case, ours, peers, None if gather is None else gather / layers, _fp8_error(bench, case))


def _fp8_error(bench: Bench, case: Case) -> float | None:
    if case.workload.kv_dtype != "fp8":
        return None
    with torch.device("cuda"):
        return fp8_error(bench.ops, case.workload, bench.store)


@dataclass(frozen=True)
class Report:
    """What is written, as far as it is known."""

    device: str
    torch: str
    flashinfer: str
    ceilings: Ceilings
    notes: tuple[str, ...]
    rows: list[Row]
    spreads: list[str]
    errors: list[str]

    def write(self, path: Path) -> None:
        """As JSON."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")


def run_group(bench: Bench, group: Group, report: Report) -> None:
    """Measure a group, print it and add it to the report."""
    started = time.monotonic()
    sets = [_measured_or_reported(bench, cases, report) for cases in group.sets]
    rows, lines = table(group.name, sets, report.ceilings), spreads(sets)
    report.rows.extend(rows)
    report.spreads.extend(lines)
    print(f"\n{group.name} ({time.monotonic() - started:.0f} s)")
    print("\n".join([*map(line, rows), *lines, *remarks(rows)]), flush=True)


def _measured_or_reported(bench: Bench, cases: Sequence[Case], report: Report) -> list[Measured]:
    """A set that fails costs no other."""
    try:
        return measure(bench, cases)
    except Exception as error:
        report.errors.append(f"{cases[0].name}, {cases[0].workload.geometry.name}: {_error_line(error)}")
        print(f"error: {report.errors[-1]}", flush=True)
        return []


def chosen_groups(names: str | None) -> list[Group]:
    """names: of groups, with commas between; None for all. InputError for a name that is none."""
    known = groups()
    if names is None:
        return list(known)
    for name in names.split(","):
        if name not in [group.name for group in known]:
            raise InputError(f"only: expected some of {', '.join(group.name for group in known)}, found {name!r}")
    return [group for group in known if group.name in names.split(",")]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns 0 or an exit code of `run_tool`."""
    parser = argparse.ArgumentParser(
        prog="kernels", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write everything that is printed here too")
    parser.add_argument("--only", metavar="NAME[,NAME]", help=", ".join(group.name for group in groups()))
    parser.add_argument("--no_peers", action="store_true", help="leave FlashInfer out")
    flags = parser.parse_args(argv)
    return run_tool(lambda: _run(flags.json, flags.only, flags.no_peers))


def _run(path: Path | None, only: str | None, no_peers: bool) -> int:
    chosen = chosen_groups(only)
    if not torch.cuda.is_available():
        raise InputError("nothing can be timed here: there is no CUDA device")
    torch.manual_seed(0)
    peers = "left out" if no_peers else open_flashinfer()
    ops = PluginAttention(PluginLibrary(plugin_library_path(), plugin_host_path()))
    bench = Bench(ops, PoolStore(), peers if isinstance(peers, FlashInfer) else None)
    report = _new_report(peers)
    print(_head(report), flush=True)
    for group in chosen:
        run_group(bench, group, report)
        if path is not None:
            report.write(path)
    return 1 if report.errors else 0


def _new_report(peers: FlashInfer | str) -> Report:
    version = peers.version if isinstance(peers, FlashInfer) else f"skipped: {peers}"
    ceilings = device_ceilings()
    torch.cuda.empty_cache()
    return Report(torch.cuda.get_device_name(), torch.__version__, version, ceilings, NOTES, [], [], [])


def _head(report: Report) -> str:
    ceilings = report.ceilings
    speeds = f"read {ceilings.read:.0f} GB/s, copy {ceilings.copy:.0f} GB/s"
    writes = [
        f"a read that writes 1/{each.share} as much takes {each.slower:.3f} times as long" for each in ceilings.writes
    ]
    device = f"{report.device}, torch {report.torch}, FlashInfer {report.flashinfer}: {', '.join((speeds, *writes))}"
    return "\n".join((device, *NOTES))


def _error_line(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error)[:ERROR_LENGTH]}"


if __name__ == "__main__":
    raise SystemExit(main())
