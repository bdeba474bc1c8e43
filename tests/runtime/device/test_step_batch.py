from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sparsespec.builder.build_config import BuildConfig
from sparsespec.builder.engine_dir import EngineConfig
from sparsespec.plugins.phase import Phase
from sparsespec.runtime.config import SpeculationConfig
from sparsespec.runtime.device.drafter import make_drafter
from sparsespec.runtime.device.executor_config import ExecutorConfig
from sparsespec.runtime.device.step_batch import StepBatch, StepMemory, make_batch
from sparsespec.runtime.device.torch_executor import make_memory
from sparsespec.runtime.sampling_params import SamplingParams
from sparsespec.runtime.scheduled_step import ScheduledRows, ScheduledStep
from tiny_models import tiny_model_config

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
K = 2
GREEDY = SamplingParams(temperature=0.0).needs
KV_LEN = [10, 20, 30, 0, 4, 50]


def memory_of(device: str) -> StepMemory:
    """Six slots with KV_LEN verified tokens; token p of slot s is 1000 s + p."""
    build = BuildConfig(
        dtype="float32", max_batch_size=6, max_seq_len=64, max_num_tokens=64, max_draft_len=K, max_budget=8, page_size=4
    )
    engine = EngineConfig(tiny_model_config(), build)
    drafter = make_drafter(SpeculationConfig(k=K, max_lookups=3))
    memory = make_memory(engine, drafter, ExecutorConfig(6, num_pages=8), torch.device(device))
    memory.state.kv_len.copy_(torch.tensor(KV_LEN))
    positions = torch.arange(memory.state.token_ids.shape[1], device=device)
    memory.state.token_ids.copy_(1000 * torch.arange(6, device=device)[:, None] + positions)
    return memory


def rows(
    slot: int, phase: Phase, num_rows: int, *, draft_index: int = 0, num_logits: int = 0, block_rows: int = 0
) -> ScheduledRows:
    return ScheduledRows(
        slot, 0, phase, num_rows, draft_index, num_logits, block_rows, scored=block_rows > 0, needs=GREEDY
    )


# Slot 2 is idle.
MIXED = (
    rows(0, Phase.VERIFY, 3, num_logits=3, block_rows=3),
    rows(1, Phase.DRAFT, 1, draft_index=1, num_logits=1),
    rows(3, Phase.PREFILL, 5),
    rows(4, Phase.PREFILL, 6, num_logits=1, block_rows=3),
    rows(5, Phase.VERIFY, 1, num_logits=1, block_rows=1),
)


def batch_of(scheduled: tuple[ScheduledRows, ...], device: str, scored: bool = True) -> StepBatch:
    return make_batch(memory_of(device), ScheduledStep(0, (), (), scheduled), scored)


def same(found: Tensor, expected: list[int]) -> bool:
    return found.tolist() == expected


@pytest.mark.parametrize("device", DEVICES)
def test_rows_of_a_mixed_step(device: str) -> None:
    inputs = batch_of(MIXED, device).inputs
    assert same(inputs.token_ids, [10, 11, 12, 1021, *range(3000, 3005), *range(4004, 4010), 5050])
    assert same(inputs.logit_rows, [0, 1, 2, 3, 14, 15])
    step = inputs.step
    assert same(step.row_start, [0, 3, 4, 4, 9, 15, 16])
    assert same(step.phase, [Phase.VERIFY, Phase.DRAFT, Phase.IDLE, Phase.PREFILL, Phase.PREFILL, Phase.VERIFY])
    assert same(step.draft_index, [0, 1, 0, 0, 0, 0])
    assert same(step.score_rows, [3, 0, 0, 0, 3, 1])
    assert [step.score_index[slot].item() for slot in (0, 4, 5)] == [0, 1, 2]
    sent = (step.row_start, step.phase, step.draft_index, step.score_rows, step.score_index)
    assert all(tensor.dtype == torch.int32 and tensor.device.type == device for tensor in sent)


@pytest.mark.parametrize("device", DEVICES)
def test_what_sampling_reads_of_a_mixed_step(device: str) -> None:
    batch = batch_of(MIXED, device)
    assert same(batch.drafts.slot, [1])
    assert same(batch.drafts.draft_index, [1])
    assert same(batch.drafts.logit, [3])
    blocks = batch.blocks
    assert blocks.rows == (MIXED[0], MIXED[3], MIXED[4])
    assert same(blocks.slot, [0, 4, 5])
    # The first logits of a verification decide the token after the one verified last; a prompt's, the one after it.
    assert same(blocks.first_position, [11, 10, 51])
    assert same(blocks.block_start, [10, 7, 50])
    assert same(blocks.num_drafts, [2, 0, 0])
    assert blocks.logits.tolist() == [[0, 1, 2], [4, 4, 4], [5, 5, 5]]
    assert same(batch.chunks.slot, [3])
    assert same(batch.chunks.num_rows, [5])


@pytest.mark.parametrize("device", DEVICES)
def test_no_scores_for_a_drafter_that_needs_none(device: str) -> None:
    assert same(batch_of(MIXED, device, scored=False).inputs.step.score_rows, [0] * 6)


def test_plain_requests_are_not_scored() -> None:
    """Their neighbour's scores take the first place."""
    plain = ScheduledRows(0, 0, Phase.VERIFY, 1, 0, 1, 1, scored=False, needs=GREEDY)
    step = batch_of((plain, rows(5, Phase.VERIFY, 3, num_logits=3, block_rows=3)), "cpu").inputs.step
    assert same(step.score_rows, [0, 0, 0, 0, 0, 3])
    assert step.score_index[5].item() == 0


@pytest.mark.parametrize("device", DEVICES)
def test_drafts_alone(device: str) -> None:
    """Each reads the token at its position, its own draft number after the verified ones."""
    drafts = tuple(rows(slot, Phase.DRAFT, 1, draft_index=slot % 2, num_logits=1) for slot in range(6))
    batch = batch_of(drafts, device)
    assert same(batch.inputs.token_ids, [10, 1021, 2030, 3001, 4004, 5051])
    assert same(batch.drafts.logit, [0, 1, 2, 3, 4, 5])
    assert batch.blocks.logits.shape == (0, 1)


@pytest.mark.parametrize("device", DEVICES)
def test_step_without_rows(device: str) -> None:
    """Every running request waits for its place in the stagger."""
    batch = batch_of((), device)
    assert same(batch.inputs.token_ids, [])
    assert same(batch.inputs.logit_rows, [])
    assert same(batch.inputs.step.row_start, [0] * 7)
    assert same(batch.inputs.step.phase, [Phase.IDLE] * 6)


def test_layers_are_views() -> None:
    """What an op writes for a layer is what the next step reads there."""
    memory = memory_of("cpu")
    batch = make_batch(memory, ScheduledStep(0, (), (), MIXED), scored=True)
    for layer, inputs in enumerate(batch.inputs.layers):
        for tensor in (inputs.kv_pool, inputs.draft_lse, inputs.scores):
            assert tensor.is_contiguous()
            tensor.fill_(layer + 1)
    for kept in (memory.kv_pool, memory.state.draft_lse, memory.scores):
        assert [kept[layer].unique().item() for layer in range(2)] == [1, 2]


def test_what_drafts_read_is_the_devices_own_memory() -> None:
    """What is looked up once the step is on the device, or selected after the one before, is what its rows read."""
    memory = memory_of("cpu")
    step = make_batch(memory, ScheduledStep(0, (), (), MIXED), scored=True).inputs.step
    state = memory.state
    for value, tensor in enumerate(
        (state.recent_start, state.num_staying, state.num_moving, state.lookups, state.num_lookups), start=1
    ):
        tensor.fill_(value)
    seen = (step.recent_start, step.num_staying, step.num_moving, step.lookups, step.num_lookups)
    assert [tensor.unique().tolist() for tensor in seen] == [[1], [2], [3], [4], [5]]
