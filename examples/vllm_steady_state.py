"""Tokens a second of vLLM's plain decoding in steady state, at the shapes of docs/performance.md; needs vLLM and a GPU.

    python examples/vllm_steady_state.py --model SmolLM2-135M-Instruct --batch 512 --context 4160

All requests decode together. Prompts are as long as the context less half of the new tokens, the same number for all.
Time is taken between the step that ends the last prompt and the last step.
"""

from __future__ import annotations

import argparse
import random
import time
from typing import Any


def steady_state(model: str, batch: int, context: int, new_tokens: int) -> float:
    """Tokens a second once all requests decode."""
    from vllm import LLMEngine, SamplingParams  # not a dependency of this project
    from vllm.engine.arg_utils import EngineArgs

    arguments = EngineArgs(
        model=model,
        dtype="bfloat16",
        max_num_seqs=batch,
        max_model_len=context + new_tokens,
        enable_prefix_caching=False,
        gpu_memory_utilization=0.95,
    )
    engine = LLMEngine.from_engine_args(arguments)
    params = SamplingParams(max_tokens=new_tokens, temperature=0.0, ignore_eos=True, detokenize=False)
    rng = random.Random(1)
    for number in range(batch):
        tokens = [rng.randrange(100, 30000) for _ in range(context - new_tokens // 2)]
        engine.add_request(str(number), {"prompt_token_ids": tokens}, params)
    return _decode(engine, batch)


def _decode(engine: Any, batch: int) -> float:
    lengths: dict[str, int] = {}
    started, base = 0.0, 0
    while engine.has_unfinished_requests():
        for output in engine.step():
            lengths[output.request_id] = len(output.outputs[0].token_ids)
        if not started and len(lengths) == batch:
            started, base = time.perf_counter(), sum(lengths.values())
    return (sum(lengths.values()) - base) / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--context", type=int, required=True, help="mean tokens of a request in the window")
    parser.add_argument("--new_tokens", type=int, default=300)
    given = parser.parse_args()
    speed = steady_state(given.model, given.batch, given.context, given.new_tokens)
    print(f"{given.batch} x {given.context}: {speed:.0f} tokens/s")


if __name__ == "__main__":
    main()
