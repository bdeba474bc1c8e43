"""How many drafts are accepted, by rule, budget, context and kind of text. Tables: acceptance_report.py.

python benchmarks/acceptance.py --engine_dir build/smollm2 --study branches --output branches.json
python benchmarks/acceptance.py --engine_dir build/smollm2 --study loops --contexts 2048 --output loops.json
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Literal

import torch

from acceptance_study.branches import expected_accepted, prefill
from acceptance_study.loops import LoopResult, run_loops
from acceptance_study.observations import Cell, Half, Observation, Study, write_observations
from acceptance_study.rules import AS_SHIPPED, NGRAM, RULES, rule
from acceptance_study.texts import Text, collect_texts
from sparsespec.builder.config_io import add_flags, check_range, from_flags, option, required
from sparsespec.builder.errors import InputError
from sparsespec.builder.report import this_machine
from sparsespec.builder.terminal import run_tool
from sparsespec.runtime.config import RuntimeConfig, SpeculationConfig
from sparsespec.runtime.loading import LoadedEngine, load_engine

# 4.4 characters a token are the most that SmolLM2's tokenizer makes of these texts.
_CHARS_PER_TOKEN = 4.6
_MAX_TEXTS_PER_SOURCE = 14
# Texts are cut to this many tokens or more, so that shorter contexts come from the same texts.
_SHORTEST_TEXT = 7168
_SHORTEST_CONTEXT = 16  # the last k + 1 tokens are prefilled apart


@dataclass(frozen=True)
class StudyConfig:
    """What is measured. On a CPU, take few contexts, rules and texts: a GPU needs ten minutes for all."""

    engine_dir: Path = required("engine directory of build_engine.py, in float32")
    output: Path = required("JSON file to write")
    study: Literal["branches", "loops"] = option("branches", "some cycles from real texts, or whole answers")
    contexts: tuple[int, ...] = option((1024, 2048, 4096, 7168), "tokens before the first draft")
    ratios: tuple[float, ...] = option((0.05, 0.1), "budgets as shares of the context")
    temperatures: tuple[float, ...] = option((0.0, 0.6), "0 is greedy")
    rules: tuple[str, ...] = option((*AS_SHIPPED, *RULES), "ways to draft")
    max_prompts: int = option(64, "positions per context, over all texts")
    num_cycles: int = option(4, "cycles of a branch")
    num_tokens: int = option(192, "new tokens of a loop")
    device: str = option("auto", "auto, cpu, cuda or cuda:N")

    def __post_init__(self) -> None:
        for name in self.rules:
            if name not in (*AS_SHIPPED, *RULES):
                raise InputError(f"rules: expected some of {', '.join((*AS_SHIPPED, *RULES))}, found {name!r}")
        for context in self.contexts:
            check_range("contexts", context, least=_SHORTEST_CONTEXT)
        for count in ("max_prompts", "num_cycles", "num_tokens"):
            check_range(count, getattr(self, count), least=1)


@dataclass(frozen=True)
class Prompt:
    """A position in a text: all tokens before it."""

    half: Half
    source: str
    text: str
    position: int
    token_ids: tuple[int, ...]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns 0 or an exit code of `run_tool`."""
    parser = argparse.ArgumentParser(
        prog="acceptance", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_flags(parser, StudyConfig)
    flags = parser.parse_args(argv)
    return run_tool(lambda: _run(from_flags(StudyConfig, flags)))


def _run(config: StudyConfig) -> int:
    engine = load_engine(config.engine_dir, RuntimeConfig(device=config.device, backend="torch"))
    observations: list[Observation] = []
    start = perf_counter()
    texts = _texts(engine, config)
    for context in config.contexts:
        prompts = _prompts(texts, context, config.max_prompts)
        measure = _branches if config.study == "branches" else _loops
        for seen in measure(engine, prompts, context, config):
            observations += seen
            print(f"{perf_counter() - start:6.0f} s  {_summary(seen)}", file=sys.stderr, flush=True)
            write_observations(config.output, _setup(config, engine), observations)
    return 0


def _branches(
    engine: LoadedEngine, prompts: list[Prompt], context: int, config: StudyConfig
) -> Iterator[list[Observation]]:
    branches = prefill(engine, [prompt.token_ids for prompt in prompts], config.num_cycles)
    for run in _runs(context, config):
        accepted = expected_accepted(branches, run.speculation, run.temperature, config.num_cycles)
        yield [
            _branch_observation(run, at, config.num_cycles, total) for at, total in zip(prompts, accepted, strict=True)
        ]


def _loops(
    engine: LoadedEngine, prompts: list[Prompt], context: int, config: StudyConfig
) -> Iterator[list[Observation]]:
    plain = SpeculationConfig(drafter="none")
    token_ids = [prompt.token_ids for prompt in prompts]
    expected = run_loops(engine, token_ids, plain, 0.0, config.num_tokens) if 0.0 in config.temperatures else []
    for run in _runs(context, config):
        results = run_loops(engine, token_ids, run.speculation, run.temperature, config.num_tokens)
        equal = _equals_plain(results, expected) if run.temperature == 0 else [None] * len(results)
        yield [_loop_observation(run, *one) for one in zip(prompts, results, equal, strict=True)]


def _equals_plain(results: list[LoopResult], expected: list[LoopResult]) -> list[bool | None]:
    return [one.token_ids == other.token_ids for one, other in zip(results, expected, strict=True)]


def _branch_observation(run: Run, at: Prompt, num_cycles: int, accepted: float) -> Observation:
    total = round(accepted, 4)
    return Observation(run.cell(at.half), at.source, at.text, at.position, num_cycles, total, num_cycles, total, None)


def _loop_observation(run: Run, at: Prompt, result: LoopResult, equals_plain: bool | None) -> Observation:
    return Observation(
        run.cell(at.half),
        at.source,
        at.text,
        at.position,
        result.num_cycles,
        result.num_accepted,
        result.fresh_cycles,
        result.fresh_accepted,
        equals_plain,
    )


@dataclass(frozen=True)
class Run:
    """One rule at one budget, context and temperature, over all prompts at once."""

    study: Study
    rule: str
    speculation: SpeculationConfig
    temperature: float
    context: int

    def cell(self, half: Half) -> Cell:
        """Where one half's observations belong."""
        own = self.speculation
        return Cell(self.study, self.rule, own.ratio, own.min_budget, self.temperature, self.context, half)


def _runs(context: int, config: StudyConfig) -> Iterator[Run]:
    """Every rule at every budget; what ships once, at its own. An n-gram drafter has no budget: once as well."""
    for name in config.rules:
        for ratio in config.ratios[:1] if name in (*AS_SHIPPED, NGRAM) else config.ratios:
            for temperature in config.temperatures:
                yield Run(config.study, name, rule(name, ratio, min_budget=1), temperature, context)


def _texts(engine: LoadedEngine, config: StudyConfig) -> list[tuple[Text, list[int]]]:
    """Texts and their token ids, the same whatever contexts are measured."""
    longest = max((*config.contexts, _SHORTEST_TEXT))
    texts = collect_texts(int((longest + 300) * _CHARS_PER_TOKEN), _MAX_TEXTS_PER_SOURCE)
    return [(text, engine.codec.encode(text.content)) for text in texts]


def _prompts(texts: list[tuple[Text, list[int]]], context: int, max_prompts: int) -> list[Prompt]:
    """Both ends of each text, if it is long enough for two; else its beginning. Texts take turns in the halves."""
    found: list[Prompt] = []
    for number, (text, token_ids) in enumerate(texts):
        starts = (0, len(token_ids) - context) if len(token_ids) > 2 * context else (0,)
        found += [
            Prompt(
                "confirm" if number % 2 else "tune",
                text.source,
                text.name,
                index,
                tuple(token_ids[start : start + context]),
            )
            for index, start in enumerate(starts)
            if len(token_ids) >= context
        ]
    if not found:
        raise InputError(f"contexts: found no text of {context} tokens")
    return _spread(found, max_prompts)


def _spread(prompts: list[Prompt], count: int) -> list[Prompt]:
    """`count` of them, evenly over the texts."""
    if len(prompts) <= count:
        return prompts
    return [prompts[index * len(prompts) // count] for index in range(count)]


def _summary(seen: list[Observation]) -> str:
    cell = seen[0].cell
    accepted = sum(one.num_accepted for one in seen) / sum(one.num_cycles for one in seen)
    return f"{cell.study} {cell.context} {cell.ratio:.0%} T={cell.temperature:g} {cell.rule}: {accepted:.2f}"


def _setup(config: StudyConfig, engine: LoadedEngine) -> dict[str, object]:
    device = engine.weights["embedding"].device.type
    values = {name: value for name, value in vars(config).items() if not isinstance(value, Path)}
    return {
        "command": "benchmarks/acceptance.py",
        "config": values,
        "machine": dataclasses.asdict(this_machine(device)),
        "torch": torch.__version__,
        "dtype": engine.config.build.dtype,
    }


if __name__ == "__main__":
    raise SystemExit(main())
