"""How many drafts are accepted by rejection sampling and by Gumbel coupling, on the same texts.

A draft from q stands against the model's p with probability 1 - TV(p, q) by rejection, and with the sum over tokens i
of 1 / sum over j of max(p_j / p_i, q_j / q_i) by shared Gumbel noise, which is no more (Daliri et al. 2024).

python benchmarks/coupling.py --engine_dir build/qwen3_1.7b --json coupling.json
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import product
from pathlib import Path

from sparsespec.builder.config_io import add_flags, check_range, from_flags, option, required
from sparsespec.builder.report import Metric, Report, check_report_path, this_machine
from sparsespec.builder.terminal import run_tool
from sparsespec.runtime.config import CouplingName, RuntimeConfig, SpeculationConfig
from sparsespec.runtime.llm import LLM
from sparsespec.runtime.loading import load_engine
from sparsespec.runtime.outputs import RequestOutput
from sparsespec.runtime.sampling_params import SamplingParams
from text_prompts import text_prompts

_COUPLINGS: tuple[CouplingName, ...] = ("rejection", "gumbel")


@dataclass(frozen=True)
class CouplingStudyConfig:
    """What is decoded."""

    engine_dir: Path = required("engine directory of build_engine.py")
    json: Path = required("report to write")
    num_prompts: int = option(32, "prompts, from texts that every installation has")
    context: int = option(2048, "tokens of a prompt")
    num_tokens: int = option(256, "new tokens of each answer")
    temperature: float = option(0.6, "of every answer")
    top_ps: tuple[float, ...] = option((1.0, 0.95), "top_p of the answers, one after the other")

    def __post_init__(self) -> None:
        for name in ("num_prompts", "context", "num_tokens"):
            check_range(name, getattr(self, name), least=1)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns 0 or an exit code of `run_tool`."""
    parser = argparse.ArgumentParser(
        prog="coupling", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for section in (CouplingStudyConfig, SpeculationConfig, RuntimeConfig):
        add_flags(parser, section)
    flags = parser.parse_args(argv)
    return run_tool(
        lambda: _run(
            from_flags(CouplingStudyConfig, flags),
            from_flags(SpeculationConfig, flags),
            from_flags(RuntimeConfig, flags),
        )
    )


def mean_accepted(outputs: Sequence[RequestOutput]) -> float:
    """Drafts accepted per verification; 0 without any."""
    checks = [check for output in outputs for answer in output.outputs for check in answer.verifications]
    return sum(check.num_accepted for check in checks) / max(1, len(checks))


def metric_name(coupling: CouplingName, top_p: float) -> str:
    """As in "accepted_gumbel_top_p_0.95"."""
    return f"accepted_{coupling}_top_p_{top_p:g}"


def _run(config: CouplingStudyConfig, speculation: SpeculationConfig, runtime: RuntimeConfig) -> int:
    check_report_path(config.json)
    engine = load_engine(config.engine_dir, runtime)
    prompts = text_prompts(engine, config.num_prompts, config.context)
    metrics = []
    for coupling, top_p in product(_COUPLINGS, config.top_ps):
        llm = LLM(engine, dataclasses.replace(speculation, coupling=coupling), runtime)
        params = SamplingParams(
            max_tokens=config.num_tokens, temperature=config.temperature, top_p=top_p, seed=0, ignore_eos=True
        )
        metrics.append(Metric(metric_name(coupling, top_p), mean_accepted(llm.generate(prompts, params)), "drafts"))
        print(f"{metrics[-1].name}: {metrics[-1].value:.3f} of {speculation.k}")
    sections = (config, speculation, runtime, engine.config)
    report = Report(
        tool="coupling",
        version=version("sparsespec"),
        machine=this_machine(str(engine.weights["embedding"].device)),
        config={type(section).__name__: dataclasses.asdict(section) for section in sections},
        metrics=tuple(metrics),
    )
    report.write(config.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
