"""How many shapes come up: each is a CUDA graph, and capturing one takes as long as some ten steps."""

from __future__ import annotations

from dataclasses import replace

import pytest

from chooser_cases import SMALL, no_time, options
from fake_device import FakeDevice, FakeHost
from sparsespec.plugins.phase import Phase
from sparsespec.runtime.adaptive_cycles import AdaptiveCycles
from sparsespec.runtime.chooser import Chooser
from sparsespec.runtime.device.step_graphs import StepShape
from sparsespec.runtime.kv_cache import KvCacheManager
from sparsespec.runtime.request import DraftShape, RequestSpec
from sparsespec.runtime.sampling_params import LogitNeeds, SamplingParams
from sparsespec.runtime.scheduled_step import ScheduledRows, ScheduledStep
from sparsespec.runtime.scheduler import Scheduler, SchedulerLimits

MOST, PROMPT = 8, 4000


def rows(
    phase: Phase, num_rows: int, num_logits: int, scored: bool = False, params: SamplingParams = SamplingParams()
) -> ScheduledRows:
    return ScheduledRows(0, 0, phase, num_rows, 0, num_logits, num_rows, scored, params.needs)


def step(*rows: ScheduledRows) -> ScheduledStep:
    return ScheduledStep(0, (), (), rows)


DRAFT, PLAIN = rows(Phase.DRAFT, 1, 1), rows(Phase.VERIFY, 1, 1)
VERIFY, CHUNK = rows(Phase.VERIFY, 9, 9, scored=True), rows(Phase.PREFILL, 300, 0)


@pytest.mark.parametrize(
    ("scheduled", "shape"),
    [
        (step(PLAIN), StepShape(1, 1, 0, every_row=True)),
        (step(DRAFT, PLAIN), StepShape(8, 8, 0, every_row=True)),
        (step(DRAFT, DRAFT), StepShape(8, 8, 0, every_row=True, drafts_only=True)),
        (step(DRAFT, VERIFY), StepShape(16, 16, 8, every_row=True)),
        (step(CHUNK), StepShape(320, 8, 0, every_row=False)),
        (step(CHUNK, VERIFY, DRAFT), StepShape(320, 16, 8, every_row=False)),
    ],
)
def test_shapes(scheduled: ScheduledStep, shape: StepShape) -> None:
    assert StepShape.of(scheduled, max_scored=64) == shape


PENALISED, TOLD = SamplingParams(presence_penalty=0.5), SamplingParams(logprobs=3)
EARLY = SamplingParams(min_tokens=9, top_k=20)


@pytest.mark.parametrize(
    ("phases", "params", "needs"),
    [
        ((Phase.VERIFY,), (PENALISED,), LogitNeeds(penalties=True)),
        ((Phase.VERIFY, Phase.DRAFT), (SamplingParams(), TOLD), LogitNeeds(logprobs=True)),
        ((Phase.DRAFT, Phase.DRAFT), (PENALISED, TOLD), LogitNeeds(penalties=True)),  # nothing is told of drafts
        ((Phase.VERIFY, Phase.DRAFT), (EARLY, TOLD), LogitNeeds(early_stops=True, logprobs=True)),
    ],
)
def test_what_any_request_wants_is_a_graph_of_its_own(
    phases: tuple[Phase, ...], params: tuple[SamplingParams, ...], needs: LogitNeeds
) -> None:
    wishes = [rows(phase, 1, 1, params=wish) for phase, wish in zip(phases, params, strict=True)]
    without = [rows(phase, 1, 1) for phase in phases]
    shape = StepShape.of(step(*wishes), 0)
    assert shape.needs == needs
    assert replace(shape, needs=LogitNeeds()) == StepShape.of(step(*without), 0)


def test_a_drafter_without_scores_has_no_places_for_them() -> None:
    assert StepShape.of(step(DRAFT, VERIFY), max_scored=0).num_scored == 0


def test_steps_of_nobody_have_a_plain_ones_shape() -> None:
    assert StepShape.of(step(PLAIN, PLAIN), 64) == StepShape.of_every_row(2)


class MixedTexts(FakeDevice):
    """Of five kinds of requests, whose drafts agree more or less."""

    def _chance(self, spec: RequestSpec) -> float:
        return (0.5, 0.8, 0.9, 0.97, 1.0)[spec.seed % 5]


@pytest.mark.parametrize(("batch", "num_steps", "most"), [(1, 600, 4), (8, 600, 8), (32, 600, 8), (128, 150, 8)])
def test_few_shapes_come_up_while_requests_adapt(batch: int, num_steps: int, most: int) -> None:
    kv_cache = KvCacheManager(20 * batch, 1024)
    cycles = AdaptiveCycles(Chooser(SMALL, options(max_drafts=MOST)), no_time)
    scheduler = Scheduler(SchedulerLimits(batch, 8192, 4096), kv_cache, cycles)
    host = FakeHost(scheduler, MixedTexts(kv_cache, 1.0, seed=1), lag=1)
    for number in range(batch):
        spec = RequestSpec(number, (1,) * PROMPT, SamplingParams(), number, (), 9000, DraftShape(MOST, MOST))
        host.requests[number] = host.scheduler.add(spec)
    while any(request.num_prefilled < PROMPT for request in host.requests.values()):
        host.step()
    shapes = [StepShape.of(host.step(), batch) for _ in range(num_steps)]
    assert 1 < len(dict.fromkeys(shapes)) <= most
