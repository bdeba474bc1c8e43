"""Streams that share one batch: how long they take, and whether each is what the engine answers offline.

    python benchmarks/serving.py --engine_dir build/smollm2 --json serving.json

Asks an engine's LLM all questions, then a server of the same engine, all at once, with one more that joins late. Then
ends the server while the same load runs, and starts it again.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from acceptance_study.texts import collect_texts
from serving_study.clients import Question
from serving_study.figures import LoadFigures, Percentiles, load_figures
from serving_study.load import Load, StreamRecord, follow, run_load
from serving_study.servers import Server, StartServer, openai_server
from sources import sources_commit, sources_version
from sparsespec.builder.config_io import add_flags, check_range, check_types, from_flags, option, required
from sparsespec.builder.errors import InputError
from sparsespec.builder.report import check_report_path, this_machine
from sparsespec.builder.terminal import run_tool
from sparsespec.runtime.config import RuntimeConfig, SpeculationConfig
from sparsespec.runtime.sampling_params import SamplingParams


@dataclass(frozen=True)
class ServingConfig:
    """What is asked of which server."""

    engine_dir: Path = required("engine directory written by build_engine.py")
    json: Path = required("report to write")
    server: Literal["openai", "triton"] = option("openai", "which server")
    num_streams: int = option(64, "streams at once; one more joins late")
    max_tokens: int = option(48, "tokens of each answer, at most")
    warm_up: int = option(0, "loads before the one that is measured, offline and served")
    prompt_chars: int = option(200, "characters of each prompt")
    ignore_eos: bool = option(False, "go on after an end-of-sequence token")
    options: tuple[str, ...] = option((), "fields of the server's configs, NAME=VALUE each; the LLM offline has none")

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("num_streams", "max_tokens", "prompt_chars"):
            check_range(name, getattr(self, name), least=1)
        check_range("warm_up", self.warm_up, least=0)
        wrong = [each for each in self.options if "=" not in each]
        if wrong:
            raise InputError(f"options must be NAME=VALUE, found {wrong[0]!r}")

    @property
    def server_options(self) -> dict[str, str]:
        """By name."""
        return {name: value for name, _, value in (each.partition("=") for each in self.options)}


@dataclass(frozen=True)
class Offline:
    """The same questions, without a server."""

    texts: tuple[str, ...]
    num_tokens: int
    seconds: float  # for all but the last, which joins late at a server
    device: str  # that computed
    is_16_bit: bool  # whether the engine computes in 16 bits


@dataclass(frozen=True)
class Ending:
    """A server that was asked to end while streams ran."""

    exit_code: int
    drained: bool  # by its own word
    num_whole: int  # streams that came to their ends, with the right text
    num_told: int  # others that were told why they ended
    seconds: float  # from the signal to the end of its process


def run(config: ServingConfig) -> int:
    """Measure, print and write; 1 where an answer was lost, or is another in an engine of 32 or 64 bits."""
    check_report_path(config.json)
    questions = ask_about(config)
    offline = answer_offline(config, questions)
    start = starter(config.server)
    with start(config.engine_dir, config.server_options) as server:
        for _ in range(config.warm_up):
            asyncio.run(measure(server, questions, offline))
        figures = asyncio.run(measure(server, questions, offline))
        ending = asyncio.run(end_under_load(server, questions, offline))
    with start(config.engine_dir, config.server_options) as server:
        restarted = asyncio.run(ask_one(server, questions[-1])).text == offline.texts[-1]
        server.send(signal.SIGTERM)
        restarted = server.wait().code == 0 and restarted
    print_table(figures, offline, ending, restarted)
    document = {
        "schema": "sparsespec.serving/1",
        "command": shlex.join(["python", "benchmarks/serving.py", *sys.argv[1:]]),
        "machine": asdict(this_machine(offline.device)),
        "server": config.server,
        "version": sources_version(),
        "commit": sources_commit(),
        "offline_seconds": offline.seconds,
        "load": asdict(figures),
        "ending": asdict(ending),
        "restarted": restarted,
    }
    config.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 0 if is_right(figures, ending, offline.is_16_bit) and (restarted or offline.is_16_bit) else 1


def is_right(figures: LoadFigures, ending: Ending, is_16_bit: bool) -> bool:
    """Whether nothing was lost, and nothing is another: in 16 bits near-ties depend on who shares the batch."""
    if figures.num_ended < figures.num_streams or ending.exit_code != 0:
        return False
    if is_16_bit:
        return True
    whole_or_told = ending.num_whole + ending.num_told == figures.num_streams
    return figures.num_equal == figures.num_streams and figures.late_is_equal and whole_or_told


def starter(name: str) -> StartServer:
    """How a server of that name is started; Triton's packages are asked for where it is wanted."""
    if name == "openai":
        return openai_server
    from serving_study.triton import triton

    return triton


def ask_about(config: ServingConfig) -> list[Question]:
    """Of texts that every installation has, each another; the last one joins late."""
    texts = collect_texts(config.prompt_chars, config.num_streams + 1)[: config.num_streams + 1]
    return [Question(text.content[: config.prompt_chars], config.max_tokens, config.ignore_eos) for text in texts]


def answer_offline(config: ServingConfig, questions: Sequence[Question]) -> Offline:
    """By an LLM of the same engine in this process."""
    from sparsespec.runtime.llm import LLM

    llm = LLM(config.engine_dir, SpeculationConfig(), RuntimeConfig())
    params = SamplingParams(max_tokens=config.max_tokens, temperature=0.0, ignore_eos=config.ignore_eos)
    prompts = [question.prompt for question in questions]
    llm.generate(prompts[:1], params)  # whatever is made when a step first comes up
    for _ in range(config.warm_up):
        llm.generate(prompts[:-1], params)
    start = time.perf_counter()
    outputs = llm.generate(prompts[:-1], params)
    seconds = time.perf_counter() - start
    outputs += llm.generate(prompts[-1:], params)
    answers = [output.outputs[0] for output in outputs]
    num_tokens = sum(len(answer.token_ids) for answer in answers)
    is_16_bit = llm.engine.config.build.element_size == 2
    device = str(llm.engine.weights["embedding"].device)
    return Offline(tuple(answer.text for answer in answers), num_tokens, seconds, device, is_16_bit)


async def measure(server: Server, questions: Sequence[Question], offline: Offline) -> LoadFigures:
    """All at once, after one that warms up."""
    client = server.client()
    await follow(client, StreamRecord(questions[0]))
    before = server.batch_count()
    load: Load = await run_load(client, questions[:-1], questions[-1])
    mean_batch = server.batch_count().mean_since(before)
    await client.close()
    return load_figures(load, offline.texts, offline.num_tokens, mean_batch)


async def end_under_load(server: Server, questions: Sequence[Question], offline: Offline) -> Ending:
    """SIGTERM once every stream has had its first part."""
    client = server.client()
    records = [StreamRecord(question) for question in questions[:-1]]
    tasks = [asyncio.ensure_future(follow(client, record)) for record in records]
    for record in records:
        await record.begun.wait()
    start = time.perf_counter()
    server.send(signal.SIGTERM)
    await asyncio.gather(*tasks)
    ended = await asyncio.to_thread(server.wait)
    seconds = time.perf_counter() - start
    await client.close()
    texts = zip(records, offline.texts, strict=False)
    num_whole = sum(record.end_s is not None and record.text == text for record, text in texts)
    num_told = sum(record.failure is not None for record in records)
    return Ending(ended.code, ended.drained, num_whole, num_told, seconds)


async def ask_one(server: Server, question: Question) -> StreamRecord:
    """And wait for its end."""
    client, record = server.client(), StreamRecord(question)
    await follow(client, record)
    await client.close()
    return record


def print_table(figures: LoadFigures, offline: Offline, ending: Ending, restarted: bool) -> None:
    """What was found."""
    rows = [
        ("streams, ended, equal to offline", f"{figures.num_streams}, {figures.num_ended}, {figures.num_equal}"),
        ("mean batch", f"{figures.mean_batch:.1f}"),
        ("first part, p50 / p99", _shown(figures.first_part)),
        ("between parts, p50 / p99", _shown(figures.between_parts)),
        ("whole answer, p50 / p99", _shown(figures.whole)),
        ("latecomer's first part", f"{figures.late_first_part_s:.3f} s, {figures.num_running_late} others running"),
        ("served, offline", f"{figures.seconds:.1f} s, {offline.seconds:.1f} s"),
        ("tokens per second, served", f"{figures.tokens_per_second:.0f}"),
        ("SIGTERM under load", f"exit {ending.exit_code} after {ending.seconds:.1f} s, {ending.num_whole} whole"),
        ("restarted", "answers alike" if restarted else "answers otherwise"),
    ]
    for name, value in rows:
        print(f"{name:34}{value}")


def _shown(values: Percentiles) -> str:
    return f"{values.p50_s:.3f} s / {values.p99_s:.3f} s"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser, ServingConfig)
    flags = parser.parse_args(argv)
    return run_tool(lambda: run(from_flags(ServingConfig, flags)))


if __name__ == "__main__":
    raise SystemExit(main())
