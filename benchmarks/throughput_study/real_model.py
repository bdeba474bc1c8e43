"""A: SmolLM2-135M, its own weights and real text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import torch

from sparsespec.runtime.config import Policy, SpeculationConfig
from sparsespec.runtime.loading import LoadedEngine
from sparsespec.runtime.sampling_params import SamplingParams
from throughput_study.cases import PLAIN, Measured, Rig, Traffic, cycle_steps, release
from throughput_study.growth import grow
from throughput_study.large_model import force
from throughput_study.peers import answer, answer_by_transformers
from throughput_study.settings import (
    ADAPTIVE,
    CHUNK,
    CYCLES,
    DEFAULT,
    PLAIN_STEPS,
    Choice,
    Results,
    greedy,
)
from throughput_study.texts import real_prompts

# Room for windows beyond the prompt, and for what the first requests gain while the last prompts join.
_MARGIN = 1500
# The model's, less a verification's rows.
_LONGEST = 8192 - 17
# Steps of small batches are short: more of them make a window.
_SMALL_BATCH, _MORE_CYCLES = 128, 50
# Of 8 drafts, outside the stretches in which the model repeats itself, in a run of `growth_sampled`.
FRESH_AGREEMENT = 6.44

_SAMPLINGS: Mapping[str, SamplingParams] = {
    "greedy": SamplingParams(temperature=0.0),
    "T 0.6": SamplingParams(temperature=0.6, seed=1),
    "T 0.6, top_p 0.95, top_k 20": SamplingParams(temperature=0.6, top_p=0.95, top_k=20, seed=1),
}
_COUPLINGS: Mapping[str, SpeculationConfig] = {
    "none": PLAIN,
    "rejection": DEFAULT,
    "gumbel": replace(DEFAULT, coupling="gumbel"),
}

# What makes a step go over whole rows of logits besides.
_WISHES: Mapping[str, SamplingParams] = {
    "tokens alone": SamplingParams(temperature=0.0),
    "log-probabilities": SamplingParams(temperature=0.0, logprobs=5),
    "a presence penalty": SamplingParams(temperature=0.0, presence_penalty=0.5),
}
_POLICIES: tuple[Policy, ...] = ("unified", "lockstep")


def shapes(choice: Choice) -> Results:
    """The shapes that vLLM was measured at."""
    for batch, context in ((512, 4160), (256, 7160)):
        prompt = context - 90
        length = min(prompt + _MARGIN, _LONGEST)
        engine = choice.engine(batch, length)
        traffic = Traffic(real_prompts(engine.codec, batch, prompt), greedy(length - prompt))
        for label, speculation in (("plain", PLAIN), ("speculative", DEFAULT), ("adaptive", ADAPTIVE)):
            steps = PLAIN_STEPS if label == "plain" else cycle_steps(speculation, CYCLES)
            yield Rig(engine, CHUNK).run(f"{batch} x {context} {label}", speculation, traffic, steps)
            release()


def growth(choice: Choice) -> Results:
    """512 requests from 2k to 8k, greedy."""
    yield from _grow(choice, temperature=0.0)


def growth_sampled(choice: Choice) -> Results:
    """The same, sampled."""
    yield from _grow(choice, temperature=0.6)


def _grow(choice: Choice, temperature: float) -> Results:
    batch, prompt = choice.batch or 512, 2048
    engine = choice.engine(batch, _LONGEST)
    params = replace(greedy(_LONGEST - prompt), temperature=temperature, seed=1)
    traffic = Traffic(real_prompts(engine.codec, batch, prompt), params)
    for label, speculation in (("plain", PLAIN), ("adaptive", ADAPTIVE), ("speculative", DEFAULT)):
        yield grow(engine, label, speculation, traffic, CHUNK)
        release()


def fresh(choice: Choice) -> Results:
    """As many drafts accepted as outside repetitive stretches, everywhere: what 512 requests would do without them."""
    batch = choice.batch or 512
    mean = torch.tensor(FRESH_AGREEMENT, device="cuda")
    for context in (2500, 4000, 6000, 7800):
        length = min(context + _MARGIN, _LONGEST)
        prompt = context - 150
        engine = choice.engine(batch, length)
        traffic = Traffic(real_prompts(engine.codec, batch, prompt), greedy(length - prompt))
        yield Rig(engine, CHUNK).run(f"{context} none", PLAIN, traffic, PLAIN_STEPS)
        release()
        rig = Rig(engine, CHUNK, prepare=partial(force, mean=mean))
        yield rig.run(f"{context} agreement {FRESH_AGREEMENT}", DEFAULT, traffic, cycle_steps(DEFAULT, CYCLES))
        release()


def drafters(choice: Choice) -> Results:
    """Every drafter on the same requests."""
    ways = {
        "none": PLAIN,
        "ngram": replace(DEFAULT, drafter="ngram"),
        "window": replace(DEFAULT, drafter="window"),
        "the paper's pillars": replace(DEFAULT, recent_share=0.0, moving_share=0.0, max_lookups=0),
        "pillar": DEFAULT,
        "pillar, adaptive": ADAPTIVE,
    }
    yield from _side_by_side(choice, ways)


def sweep_k(choice: Choice) -> Results:
    """Drafts per cycle."""
    yield from _side_by_side(choice, {"none": PLAIN} | {f"k {k}": replace(DEFAULT, k=k) for k in (4, 6, 8, 10, 12, 16)})


def sweep_ratio(choice: Choice) -> Results:
    """Share of the cache that drafts read."""
    ratios = (0.025, 0.05, 0.075, 0.1, 0.15, 0.2)
    ways = {f"ratio {ratio}": replace(DEFAULT, ratio=ratio, min_budget=64) for ratio in ratios}
    yield from _side_by_side(choice, {"none": PLAIN} | ways)


def sweep_batch(choice: Choice) -> Results:
    """Requests that decode together."""
    for batch in (1, 8, 32, 128, 512) if choice.batch is None else (choice.batch,):
        ways = {f"{batch} none": PLAIN, f"{batch} pillar": DEFAULT, f"{batch} adaptive": ADAPTIVE}
        yield from _side_by_side(replace(choice, batch=batch), ways)


def policies(choice: Choice) -> Results:
    """Verifications spread evenly over steps, or all in one step after steps of drafts alone."""
    for batch in (32, 256) if choice.batch is None else (choice.batch,):
        engine, traffic = _side(choice, batch)
        yield Rig(engine, CHUNK).run(f"{batch} none", PLAIN, traffic, _steps(PLAIN, batch))
        release()
        for policy in _POLICIES:
            rig = Rig(engine, CHUNK, policy=policy)
            yield rig.run(f"{batch} {policy}", DEFAULT, traffic, _steps(DEFAULT, batch))
            release()


def sampling(choice: Choice) -> Results:
    """The same requests greedy, at a temperature, and with cuts; drafts stand by rejection or by equal Gumbel noise."""
    batch = choice.batch or 256
    engine, traffic = _side(choice, batch)
    for name, given in _SAMPLINGS.items():
        params = replace(given, max_tokens=traffic.params.max_tokens, ignore_eos=True)
        for label, speculation in _COUPLINGS.items():
            rig = Rig(engine, CHUNK)
            yield rig.run(f"{name}, {label}", speculation, Traffic(traffic.prompts, params), _steps(speculation, batch))
            release()


def wishes(choice: Choice) -> Results:
    """The same requests, greedy, when all of them want more than tokens by the model's logits."""
    batch = choice.batch or 256
    engine, traffic = _side(choice, batch)
    for name, given in _WISHES.items():
        params = replace(given, max_tokens=traffic.params.max_tokens, ignore_eos=True)
        for label, speculation in (("none", PLAIN), ("speculative", DEFAULT)):
            rig = Rig(engine, CHUNK)
            yield rig.run(f"{name}, {label}", speculation, Traffic(traffic.prompts, params), _steps(speculation, batch))
            release()


def peer(choice: Choice) -> Results:
    """Whole answers, prompts included, beside transformers' continuous batching."""
    batch, prompt, answer_len = choice.batch or 64, choice.context or 2048, 128
    engine = choice.engine(batch, prompt + answer_len)
    traffic = Traffic(real_prompts(engine.codec, batch, prompt), greedy(answer_len))
    for label, speculation in (("plain", PLAIN), ("speculative", DEFAULT)):
        yield Measured(label, speculation, answer(engine, speculation, traffic, CHUNK))
        release()
    yield Measured("transformers' continuous batching", PLAIN, answer_by_transformers(engine, traffic))


def _side_by_side(choice: Choice, ways: Mapping[str, SpeculationConfig]) -> Results:
    batch = choice.batch or 256
    engine, traffic = _side(choice, batch)
    for label, speculation in ways.items():
        yield Rig(engine, CHUNK).run(label, speculation, traffic, _steps(speculation, batch))
        release()


def _side(choice: Choice, batch: int) -> tuple[LoadedEngine, Traffic]:
    prompt = (choice.context or 4096) - 90
    engine = choice.engine(batch, prompt + _MARGIN)
    return engine, Traffic(real_prompts(engine.codec, batch, prompt), greedy(_MARGIN - 10))


def _steps(speculation: SpeculationConfig, batch: int) -> int:
    """Of a window."""
    if batch <= _SMALL_BATCH:
        return cycle_steps(DEFAULT, _MORE_CYCLES)
    return PLAIN_STEPS if speculation.num_draft_steps == 0 else cycle_steps(speculation, CYCLES)
