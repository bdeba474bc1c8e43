"""Generate text with an engine by self-speculation: `python runtime/run.py` or `sparsespec-run`."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

from rich.console import Console

from sparsespec.builder.config_io import add_flags, from_flags
from sparsespec.builder.errors import RequestError
from sparsespec.builder.report import check_report_path, this_machine
from sparsespec.builder.terminal import run_tool
from sparsespec.runtime.cli.decode_batch import DecodedBatch, ShowDelta, decode_batch
from sparsespec.runtime.cli.profile import profile_table, profile_trace
from sparsespec.runtime.cli.prompts import read_prompts
from sparsespec.runtime.cli.run_config import RunConfig
from sparsespec.runtime.cli.run_display import print_answers, progress_bar, streamed, waiting
from sparsespec.runtime.cli.run_result import PlainComparison, ReportContext, RunResult, first_differences, make_report
from sparsespec.runtime.cli.summary import summarize
from sparsespec.runtime.cli.summary_table import summary_table
from sparsespec.runtime.collector import freeze_heap
from sparsespec.runtime.config import RuntimeConfig, SpeculationConfig
from sparsespec.runtime.outputs import RequestOutput
from sparsespec.runtime.profile_trace import ProfileTrace
from sparsespec.runtime.sampling_params import SamplingParams
from sparsespec.runtime.tracing import NoRecorder, NvtxRanges, Recorder

if TYPE_CHECKING:
    from sparsespec.runtime.llm import LLM


# What imports torch is imported where it is used: `--help` and a mistyped flag answer at once.

FILE_WIDTH = 96  # columns of a summary that does not go to a terminal


@dataclass(frozen=True)
class RunFlags:
    """Everything the command line said."""

    run: RunConfig
    speculation: SpeculationConfig
    runtime: RuntimeConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns 0, 1 where plain decoding gave other tokens in 32 or 64 bits, 2 after an error that the user can mend
    (other prompts of the run are answered nevertheless), 130 after an interrupt, 141 where stdout was closed.
    """
    parser = argparse.ArgumentParser(prog="run", description=__doc__, allow_abbrev=False)
    for section in (RunConfig, SpeculationConfig, RuntimeConfig):
        add_flags(parser, section)
    flags = parser.parse_args(argv)
    return run_tool(lambda: run(_run_flags(flags)))


def run(flags: RunFlags) -> int:
    """Answer the prompts and print the answers and what was measured; returns main's exit code."""
    for path in (flags.run.json, flags.run.profile):
        if path is not None:
            check_report_path(path)
    prompts, params = read_prompts(flags.run), flags.run.sampling_params()
    start = perf_counter()
    recorder = _recorder(flags)
    llm = _load(flags, recorder)
    load_seconds = perf_counter() - start
    request_ids = _submit(llm, flags.run, prompts, params)
    if not request_ids:
        return 2
    batch = _decode(llm, flags.run, request_ids)
    choice = llm.choice
    if isinstance(recorder, ProfileTrace):
        recorder.finish()
    result = RunResult(
        prompt_numbers=tuple(request_ids),
        outputs=batch.outputs,
        summary=summarize(batch.outputs, flags.speculation, llm.kv_bytes_per_token),
        load_seconds=load_seconds,
        speed=batch.speed,
        plain=_compare_plain(llm, batch.outputs, params) if flags.run.compare_plain else None,
        chosen=None if choice is None else choice.way,
    )
    width = None if sys.stdout is not None and sys.stdout.isatty() else FILE_WIDTH
    console = Console(width=width, highlight=False)
    console.print(summary_table(result, flags.speculation))
    if flags.run.profile is not None and isinstance(recorder, ProfileTrace):
        console.print(profile_table(recorder))
        recorder.write(flags.run.profile)
    _write_report(flags, llm, result, len(prompts))
    if result.plain and result.plain.num_differing and not result.plain.is_16_bit:
        return 1
    return 0 if len(request_ids) == len(prompts) else 2


def _run_flags(flags: argparse.Namespace) -> RunFlags:
    return RunFlags(
        from_flags(RunConfig, flags), from_flags(SpeculationConfig, flags), from_flags(RuntimeConfig, flags)
    )


def _recorder(flags: RunFlags) -> Recorder:
    if flags.run.profile is not None:
        return profile_trace(flags.run, flags.runtime.device)
    return NvtxRanges() if flags.run.nvtx else NoRecorder()


def _load(flags: RunFlags, recorder: Recorder) -> LLM:
    with waiting(f"loading {flags.run.engine_dir}"):
        from sparsespec.runtime.llm import LLM

        llm = LLM(flags.run.engine_dir, flags.speculation, flags.runtime, recorder)
    freeze_heap()
    if llm.engine.config.tensorrt is not None:  # elsewhere there is no choice
        print(f"backend {llm.engine.backend}: {llm.engine.backend_reason}", file=sys.stderr)
    return llm


def _submit(llm: LLM, config: RunConfig, prompts: Sequence[str], params: SamplingParams) -> Mapping[int, int]:
    """Request ids by the prompt's number, counted from 1; tells of prompts that are refused."""
    submitted = [(number, _submit_one(llm, config, prompt, params)) for number, prompt in enumerate(prompts, start=1)]
    for number, outcome in submitted:
        if isinstance(outcome, RequestError):
            print(f"error: prompt {number}: {outcome}", file=sys.stderr)
    return {number: outcome for number, outcome in submitted if isinstance(outcome, int)}


def _submit_one(llm: LLM, config: RunConfig, prompt: str, params: SamplingParams) -> int | RequestError:
    try:
        return llm.add_request(llm.encode_chat(prompt) if config.chat_template else prompt, params)
    except RequestError as error:
        return error


def _decode(llm: LLM, config: RunConfig, request_ids: Mapping[int, int]) -> DecodedBatch:
    display: AbstractContextManager[ShowDelta] = streamed()
    if not config.streams:
        display = progress_bar("decoding", len(request_ids) * config.num_return_sequences, config.max_output_len)
    with display as show:
        batch = decode_batch(llm, list(request_ids.values()), show)
    if not config.streams:
        print_answers(tuple(request_ids), batch.outputs)
    return batch


def _compare_plain(llm: LLM, outputs: Sequence[RequestOutput], params: SamplingParams) -> PlainComparison:
    plain = dataclasses.replace(params, speculate=False)
    with progress_bar("decoding plainly", len(outputs) * params.n, params.max_tokens) as show:
        batch = decode_batch(llm, [llm.add_request(output.prompt_token_ids, plain) for output in outputs], show)
    is_16_bit = llm.engine.config.build.element_size == 2
    return PlainComparison(batch.speed, first_differences(outputs, batch.outputs), is_16_bit)


def _write_report(flags: RunFlags, llm: LLM, result: RunResult, num_prompts: int) -> None:
    if flags.run.json is None:
        return
    context = ReportContext(
        config={
            **dataclasses.asdict(flags),
            **dataclasses.asdict(llm.engine.config),
            "backend": {"name": llm.engine.backend, "reason": llm.engine.backend_reason},
        },
        machine=this_machine(str(llm.engine.weights["embedding"].device)),
        num_prompts=num_prompts,
        speculation=flags.speculation,
        kv_bytes_per_token=llm.kv_bytes_per_token,
    )
    make_report(result, context).write(flags.run.json)


if __name__ == "__main__":
    raise SystemExit(main())
