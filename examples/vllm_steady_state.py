"""vLLM's plain decoding in steady state, at the shapes of docs/performance.md; needs vLLM (0.25.1 was meant) and a GPU.

    python examples/vllm_steady_state.py --model SmolLM2-135M-Instruct --batch 512 --context 4160 --json vllm.json

Prompts of random tokens, all of one length, are prefilled in chunks while those that are through decode. A window of
steps begins once all decode, and none ends in it: each of its steps gives each request one token, which is checked.
With --load_format dummy the model may be a folder with nothing but config.json. The JSON has the facts of a window as
benchmarks/throughput.py stores them.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SETTLING_STEPS = 32  # after the last prompt, so that nothing is queued between vLLM's processes
_SPARE_TOKENS = 64  # of a request, beyond those that it needs
_TOKEN_IDS = (100, 30_000)


@dataclass(frozen=True)
class Shape:
    """Requests that decode together."""

    batch: int
    context: int  # mean tokens of a request in the middle of the window
    num_steps: int  # of the window
    max_num_batched_tokens: int  # of a step that prefills

    @property
    def prefill_steps(self) -> int:
        """At most: so many tokens has the first request when the last prompt is in."""
        room = self.max_num_batched_tokens - self.batch  # beside those that decode
        if room < 1:
            raise ValueError(f"max_num_batched_tokens: expected more than batch, found {self.max_num_batched_tokens}")
        return -(-self.batch * self.context // room)

    @property
    def prompt_len(self) -> int:
        """Prompts end one after another, so a request has half of prefill_steps tokens, on average, when all are in."""
        length = self.context - (self.prefill_steps + self.num_steps) // 2 - _SETTLING_STEPS
        if length < 1:
            raise ValueError(f"context: expected room for {self.context - length} new tokens, found {self.context}")
        return length

    @property
    def max_tokens(self) -> int:
        """No request ends before the window does."""
        return self.prefill_steps + _SETTLING_STEPS + self.num_steps + _SPARE_TOKENS


@dataclass(frozen=True)
class Window:
    """Of what throughput_study.windows.Window holds, what another engine can tell."""

    num_requests: int
    num_steps: int
    num_tokens: int
    seconds: float
    context: float  # tokens of a request, prompt included, on average over requests and window

    def line(self) -> str:
        """For a reader."""
        step_ms, speed = 1e3 * self.seconds / self.num_steps, self.num_tokens / self.seconds
        return f"{self.num_requests} x {self.context:.0f}: {step_ms:.3f} ms a step, {speed:.0f} tokens/s"


def start_engine(model: str, load_format: str, shape: Shape) -> Any:
    """An LLMEngine with all requests submitted."""
    from vllm import EngineArgs, LLMEngine, SamplingParams  # not a dependency of this project
    from vllm.sampling_params import RequestOutputKind

    arguments = EngineArgs(
        model=model,
        load_format=load_format,
        skip_tokenizer_init=True,
        dtype="bfloat16",
        max_num_seqs=shape.batch,
        max_model_len=shape.prompt_len + shape.max_tokens,
        max_num_batched_tokens=shape.max_num_batched_tokens,
        enable_prefix_caching=False,
        gpu_memory_utilization=0.95,
        disable_log_stats=True,
    )
    engine = LLMEngine.from_engine_args(arguments)
    params = SamplingParams(
        max_tokens=shape.max_tokens,
        temperature=0.0,
        ignore_eos=True,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )
    rng = random.Random(1)
    for number in range(shape.batch):
        tokens = [rng.randrange(*_TOKEN_IDS) for _ in range(shape.prompt_len)]
        engine.add_request(str(number), {"prompt_token_ids": tokens}, params)
    return engine


def measure(engine: Any, shape: Shape) -> Window:
    """Until all requests decode, and a window of steps. RuntimeError where a step of it is not one token for each."""
    lengths = [0] * shape.batch
    while 0 in lengths:
        _step(engine, lengths)
    for _ in range(_SETTLING_STEPS):
        _step(engine, lengths)
    before = sum(lengths)
    started = time.perf_counter()
    for _ in range(shape.num_steps):
        gained = _step(engine, lengths)
        if gained != shape.batch:
            raise RuntimeError(f"expected a token for each of {shape.batch} requests in a step, found {gained}")
    seconds = time.perf_counter() - started
    context = shape.prompt_len + (before + sum(lengths)) / 2 / shape.batch
    return Window(shape.batch, shape.num_steps, sum(lengths) - before, seconds, context)


def _step(engine: Any, lengths: list[int]) -> int:
    """The next step that gives tokens; returns how many. RuntimeError where a request ends."""
    gained = 0
    while gained == 0:
        for output in engine.step():
            if output.finished:
                raise RuntimeError(f"request {output.request_id} ended before the window did")
            num_tokens = len(output.outputs[0].token_ids)
            lengths[int(output.request_id)] += num_tokens
            gained += num_tokens
    return gained


def _write(path: Path, window: Window, given: argparse.Namespace) -> None:
    import torch
    import vllm

    facts = {
        "label": f"vLLM {vllm.__version__}, {given.batch} x {given.context}",
        "device": torch.cuda.get_device_name(),
        "config": {name: value for name, value in vars(given).items() if name != "json"},
        "window": dataclasses.asdict(window),
    }
    path.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--load_format", default="auto", help="dummy: random weights")
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--context", type=int, required=True, help="mean tokens of a request in the window")
    parser.add_argument("--num_steps", type=int, default=100, help="of the window")
    parser.add_argument("--max_num_batched_tokens", type=int, default=16384, help="of a step that prefills")
    parser.add_argument("--json", type=Path, help="report to write")
    given = parser.parse_args()
    shape = Shape(given.batch, given.context, given.num_steps, given.max_num_batched_tokens)
    window = measure(start_engine(given.model, given.load_format, shape), shape)
    print(window.line())
    if given.json is not None:
        _write(given.json, window, given)


if __name__ == "__main__":
    main()
