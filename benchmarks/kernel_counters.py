"""What bounds PillarAttention's kernels: the GPU's counters over one launch of each, by Nsight Compute (`ncu`).

    python benchmarks/kernel_counters.py --json counters.json

Launches stand alone, with cold caches and the clock locked to its base, and each is repeated until all counters are
read: so times are not those of benchmarks/kernels.py, whose launches overlap. Steps have one layer. Shares are of what
a unit can do, over all multiprocessors and the whole launch.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from kernel_cases import Case, Workload
from kernel_groups import (
    QWEN3_8B,
    SMOLLM2,
    drafts,
    in_fp8,
    mixed,
    plain,
    prefill,
    some_verify,
    verify,
)
from kernel_ops import PoolStore
from kernel_steps import prepare
from sparsespec.builder.errors import InputError
from sparsespec.builder.terminal import run_tool
from sparsespec.plugins.library import plugin_host_path, plugin_library_path
from sparsespec.plugins.pillar_attention.inputs import AttentionInputs
from sparsespec.plugins.plugin_host import PluginLibrary
from sparsespec.runtime.device.attention_ops import AttentionOps
from sparsespec.runtime.device.plugin_ops import PluginAttention

# In the order of a layer's launches.
KERNELS = ("append_kernel", "pillar_attention_kernel", "unite_kernel")
COUNTERS = {
    "gpu__time_duration.sum": "ns",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": "memory",
    "lts__throughput.avg.pct_of_peak_sustained_elapsed": "L2 cache",
    "l1tex__data_pipe_lsu_wavefronts.avg.pct_of_peak_sustained_elapsed": "shared memory and L1 cache",
    "sm__inst_issued.avg.pct_of_peak_sustained_elapsed": "instructions issued",
    "sm__inst_executed_pipe_alu.avg.pct_of_peak_sustained_elapsed": "ALU",
    "sm__inst_executed_pipe_xu.avg.pct_of_peak_sustained_elapsed": "exponentials and conversions",
    "sm__pipe_tensor_op_hmma_cycles_active.avg.pct_of_peak_sustained_elapsed": "matrix units",
}


@dataclass(frozen=True)
class Counted:
    """A launch. counters: by COUNTERS' names, percent but for ns."""

    geometry: str
    case: str
    kernel: str
    counters: dict[str, float]


def cases() -> Iterator[Case]:
    """Of the benchmark's: most that miss a target, and those that these are measured by. Of one layer."""
    grouped = replace(QWEN3_8B, num_heads=8 * QWEN3_8B.num_kv_heads)
    few = replace(QWEN3_8B, batch=1, context=32768)
    for model in (QWEN3_8B, SMOLLM2):
        yield _case("plain decode", plain(model))
        yield _case("draft", drafts(model))
        yield _case("draft, FP8", in_fp8(drafts(model)))
        yield _case("verify", verify(model))
        yield _case("verify, FP8", in_fp8(verify(model)))
        yield _case("verify with scores", verify(model, scored=True))
        yield _case("verify with scores, cached", replace(verify(model, scored=True), cached=True))
        yield _case("verify with scores, 1/9 of slots", some_verify(model, scored=True))
        yield _case("unified mix", mixed(model))
    yield _case("verify with scores, group 8", verify(grouped, scored=True))
    yield _case("plain decode", plain(few))
    yield _case("prefill 2048 on 0", prefill(0))
    yield _case("prefill 2048 on 8192", prefill(8192))


def _case(name: str, workload: Workload) -> Case:
    return Case(name, replace(workload, geometry=replace(workload.geometry, num_layers=1)))


def launch_all(ops: AttentionOps) -> None:
    """Every case once unseen, and once for ncu."""
    store = PoolStore()
    for case in cases():
        with torch.device("cuda"):
            prepared = prepare(case.workload, store.pools(case.workload.geometry, case.workload.kv_dtype))
        plan = ops.plan(prepared.params, prepared.step)
        inputs = AttentionInputs(prepared.qkv, None, prepared.layers[0], prepared.step, plan)
        ops.attention(prepared.params, inputs)
        torch.cuda.synchronize()
        torch.cuda.profiler.start()
        ops.attention(prepared.params, inputs)
        torch.cuda.synchronize()
        torch.cuda.profiler.stop()


def parsed(lines: Sequence[str]) -> list[Counted]:
    """Of ncu's table: names, units, then a launch a line. InputError where there are other launches than expected."""
    start = next((number for number, text in enumerate(lines) if text.startswith('"ID"')), len(lines))
    launches = list(csv.DictReader(lines[start:]))[1:]
    expected = [(case, kernel) for case in cases() for kernel in KERNELS]
    found = [launch["Kernel Name"] for launch in launches]
    if len(found) != len(expected) or any(
        kernel not in name for name, (_, kernel) in zip(found, expected, strict=True)
    ):
        raise InputError(f"ncu: expected {len(expected)} launches, {', '.join(KERNELS)} for each case, found {found}")
    return [
        Counted(case.workload.geometry.name, case.name, kernel, _counters(launch))
        for launch, (case, kernel) in zip(launches, expected, strict=True)
    ]


def _counters(launch: dict[str, str]) -> dict[str, float]:
    return {name: float(launch[counter].replace(",", "")) for counter, name in COUNTERS.items()}


def line(counted: Counted) -> str:
    """For people."""
    shares = (f"{name} {value:.0f}%" for name, value in counted.counters.items() if name != "ns")
    name = f"{counted.geometry}  {counted.case}  {counted.kernel}"
    return f"{name:<88} {counted.counters['ns'] / 1000:8.1f} us  {', '.join(shares)}"


def run_ncu() -> list[Counted]:
    """This program, by ncu."""
    ncu = shutil.which("ncu")
    if ncu is None:
        raise InputError("nothing can be counted here: there is no ncu (Nsight Compute) on the path")
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "ncu.csv"
        options = ("--profile-from-start", "off", "--csv", "--page", "raw", "--print-units", "base")
        chosen = ("--metrics", ",".join(COUNTERS), "--kernel-name", f"regex:{'|'.join(KERNELS)}")
        program = (sys.executable, str(Path(__file__).resolve()), "--launch")
        done = subprocess.run([ncu, *options, *chosen, "--log-file", str(log), *program], check=False)
        text = log.read_text() if log.exists() else ""
        if done.returncode != 0:
            raise InputError(f"ncu: expected exit code 0, found {done.returncode}: {text[-400:]}")
        return parsed(text.splitlines())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns 0 or an exit code of `run_tool`."""
    parser = argparse.ArgumentParser(
        prog="kernel_counters", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write everything that is printed here too")
    parser.add_argument("--launch", action="store_true", help="only launch the kernels, for ncu")
    flags = parser.parse_args(argv)
    return run_tool(lambda: _run(flags.json, flags.launch))


def _run(path: Path | None, only_launch: bool) -> int:
    if not torch.cuda.is_available():
        raise InputError("nothing can be counted here: there is no CUDA device")
    if only_launch:
        torch.manual_seed(0)
        launch_all(PluginAttention(PluginLibrary(plugin_library_path(), plugin_host_path())))
        return 0
    counted = run_ncu()
    print("\n".join(map(line, counted)))
    if path is not None:
        report = {"device": torch.cuda.get_device_name(), "launches": [asdict(each) for each in counted]}
        path.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
