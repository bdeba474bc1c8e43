"""What "the same tokens as plain decoding" means in 16 bits, checked on an engine.

A verification rounds otherwise than a step of one row, and so does plain decoding in another batch. Where two tokens
are almost equally likely, either may come out. So plain decoding is forced along the speculative tokens. Where it would
have taken another token, the gap between the two logits must be no more than what the gap between its own two best
tokens moves when it runs in other batches and chunks (eps).

python benchmarks/bf16_equality.py --engine_dir build/smollm2_bf16 --json equality.json
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from forced_plain import Way, forced_logits
from sparsespec.builder.config_io import add_flags, check_range, from_flags, option, required
from sparsespec.builder.errors import InputError
from sparsespec.builder.report import Metric, Report, check_report_path, this_machine
from sparsespec.builder.terminal import run_tool
from sparsespec.runtime.config import RuntimeConfig, SpeculationConfig
from sparsespec.runtime.llm import LLM
from sparsespec.runtime.loading import LoadedEngine, load_engine
from sparsespec.runtime.outputs import RequestOutput
from sparsespec.runtime.sampling_params import SamplingParams
from text_prompts import text_prompts

# Copies of every text in the largest batch that eps is taken from.
_CROWD = 8


@dataclass(frozen=True)
class EqualityConfig:
    """What is decoded."""

    engine_dir: Path = required("engine directory of build_engine.py, in bfloat16 or float16")
    json: Path = required("report to write")
    num_prompts: int = option(8, "prompts, from texts that every installation has")
    context: int = option(2048, "tokens of a prompt")
    num_tokens: int = option(256, "new tokens of each answer")

    def __post_init__(self) -> None:
        for name in ("num_prompts", "context", "num_tokens"):
            check_range(name, getattr(self, name), least=1)


@dataclass(frozen=True)
class Equality:
    """Speculative tokens against plain decoding that was forced along them."""

    num_tokens: int
    num_differing: int  # tokens that plain decoding would not have taken
    largest_gap: float  # of those: its own token's logit less theirs
    num_beyond: int  # gaps above eps
    eps: float  # the most that plain decoding's gap between its two best tokens moves in other batches and chunks

    def metrics(self) -> tuple[Metric, ...]:
        """As a report tells them."""
        return (
            Metric("tokens", self.num_tokens, "tokens"),
            Metric("tokens_equal", self.num_tokens - self.num_differing, "tokens"),
            Metric("tokens_differing", self.num_differing, "tokens"),
            Metric("tokens_beyond_eps", self.num_beyond, "tokens"),
            Metric("largest_gap", self.largest_gap, "logit"),
            Metric("eps", self.eps, "logit"),
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns 0, 1 where a gap is beyond eps, or an exit code of `run_tool`."""
    parser = argparse.ArgumentParser(
        prog="bf16_equality", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for section in (EqualityConfig, SpeculationConfig, RuntimeConfig):
        add_flags(parser, section)
    flags = parser.parse_args(argv)
    return run_tool(
        lambda: _run(
            from_flags(EqualityConfig, flags), from_flags(SpeculationConfig, flags), from_flags(RuntimeConfig, flags)
        )
    )


def measure(engine: LoadedEngine, outputs: Sequence[RequestOutput], runtime: RuntimeConfig) -> Equality:
    """outputs: greedy answers of one length, without penalties or stops."""
    answers = [output.outputs[0].token_ids for output in outputs]
    texts = [[*output.prompt_token_ids, *answer] for output, answer in zip(outputs, answers, strict=True)]
    ways = (Way(len(texts), 256, runtime.attention), Way(2, 64, runtime.attention), Way(1, 96, runtime.attention))
    plain, *others = (forced_logits(engine, texts, len(answers[0]), way).float() for way in ways)
    # A verification has several rows of each text, and matrix products round by how many rows there are in all.
    crowd = Way(len(texts) * _CROWD, 256, runtime.attention)
    others.append(forced_logits(engine, texts * _CROWD, len(answers[0]), crowd)[: len(texts)].float())
    return compare(torch.tensor(answers, device=plain.device), plain, others)


def compare(tokens: Tensor, plain: Tensor, others: Sequence[Tensor]) -> Equality:
    """tokens: [n, num_new] int64. plain, others: [n, num_new, vocab] logits of plain decoding, in several ways.

    Raises InputError where a logit is not finite: no gap would show it.
    """
    if not all(bool(logits.isfinite().all()) for logits in (plain, *others)):
        raise InputError("plain decoding: expected finite logits, found others")
    chosen = plain.gather(2, tokens[..., None])[..., 0]
    gaps = (plain.amax(dim=-1) - chosen)[plain.argmax(dim=-1) != tokens]
    best = plain.topk(2, dim=-1).indices
    eps = max(float((_gap(plain, best) - _gap(other, best)).abs().max()) for other in others)
    return Equality(
        num_tokens=tokens.numel(),
        num_differing=gaps.numel(),
        largest_gap=float(gaps.max()) if gaps.numel() else 0.0,
        num_beyond=int((gaps > eps).sum()),
        eps=eps,
    )


def _gap(logits: Tensor, pair: Tensor) -> Tensor:
    first, second = logits.gather(2, pair).unbind(dim=-1)
    return first - second


def _run(config: EqualityConfig, speculation: SpeculationConfig, runtime: RuntimeConfig) -> int:
    check_report_path(config.json)
    engine = load_engine(config.engine_dir, runtime)
    prompts = text_prompts(engine, config.num_prompts, config.context)
    params = SamplingParams(max_tokens=config.num_tokens, temperature=0.0, ignore_eos=True)
    outputs = LLM(engine, speculation, runtime).generate(prompts, params)
    equality = measure(engine, outputs, runtime)
    metrics = (*equality.metrics(), *_draft_metrics(outputs))
    for metric in metrics:
        print(f"{metric.name:>24} {metric.value:10.6g} {metric.unit}")
    sections = (config, speculation, runtime, engine.config)
    report = Report(
        tool="bf16_equality",
        version=version("sparsespec"),
        machine=this_machine(str(engine.weights["embedding"].device)),
        config={type(section).__name__: dataclasses.asdict(section) for section in sections},
        metrics=metrics,
    )
    report.write(config.json)
    return 1 if equality.num_beyond else 0


def _draft_metrics(outputs: Sequence[RequestOutput]) -> tuple[Metric, ...]:
    blocks = [block for output in outputs for block in output.outputs[0].verifications]
    return (
        Metric("drafts", sum(block.num_drafts for block in blocks), "tokens"),
        Metric("drafts_accepted", sum(block.num_accepted for block in blocks), "tokens"),
    )


if __name__ == "__main__":
    raise SystemExit(main())
