"""Random steps for the ops around the decoder, with slots in every phase, greedy and sampled, and padding."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

import torch
from torch import Tensor

from sparsespec.plugins.accept_drafts.inputs import BUDGET_PARTS, RESULT_FIELDS, AcceptDraftsInputs
from sparsespec.plugins.phase import Phase
from sparsespec.plugins.sample_rows.inputs import RowStatistics, SampleRowsInputs
from sparsespec.plugins.step_rows.inputs import StepRowsInputs

# Few tokens in the texts, so that they repeat themselves.
_ALPHABET = 12
_MAX_POSITIONS = 3000
_MAX_PAGES = 5
_PADDING = 3
# Half of the slots or more go without each cut.
_MIN_P = (0.0, 0.0, 0.0, 0.05, 1.0)
_TOP_K = (0, 0, 0, 0, 1, 20, 600)
_TOP_P = (1.0, 1.0, 1.0, 0.95, 0.4, 1e-6)
NUM_CUTS = 3 * 5 * 4  # that differ


# Spread; of few values, so that most cuts lie among equals; all equal; spread around zero, which has two signs; half
# of them -inf.
LogitKind = Literal["spread", "tied", "equal", "zeros", "masked"]


@dataclass(frozen=True)
class StepCase:
    """Sizes of a step."""

    num_slots: int
    draft_len: int
    vocab_size: int
    max_lookups: int = 16
    logits: LogitKind = "spread"

    def __str__(self) -> str:
        return f"{self.num_slots}x{self.draft_len}-{self.vocab_size}-{self.max_lookups}-{self.logits}"


@dataclass(frozen=True)
class RandomStep:
    """One step's tensors; see the inputs of the ops."""

    case: StepCase
    phase: Tensor
    row_start: Tensor
    logit_start: Tensor
    draft_index: Tensor
    block_rows: Tensor
    kv_len: Tensor
    recent_start: Tensor
    token_ids: Tensor
    temperature: Tensor
    min_p: Tensor
    top_k: Tensor
    top_p: Tensor
    seed: Tensor
    draft_probs: Tensor
    logits: Tensor
    logit_slot: Tensor
    logit_position: Tensor


def random_step(case: StepCase, seed: int, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> RandomStep:
    """The same for the same arguments."""
    generator = torch.Generator().manual_seed(seed)
    size, k = case.num_slots, case.draft_len

    def numbers(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=generator)

    phase = numbers(0, 4, size)
    if k == 0:
        phase = torch.where(phase == Phase.DRAFT, int(Phase.VERIFY), phase)
    ends = numbers(0, 2, size).bool()
    chunk, block = numbers(1, 600, size), numbers(1, k + 2, size)
    is_draft, is_verify, is_prompt = (phase == each for each in (Phase.DRAFT, Phase.VERIFY, Phase.PREFILL))
    num_rows = is_draft.long() + is_verify * block + is_prompt * chunk
    num_logits = is_draft.long() + is_verify * block + (is_prompt & ends)
    block_rows = is_verify * block + (is_prompt & ends) * torch.minimum(chunk, torch.tensor(k + 1))
    logit_start = torch.cat((torch.zeros(1, dtype=torch.int64), num_logits.cumsum(0)))
    row_start = torch.cat((torch.zeros(1, dtype=torch.int64), num_rows.cumsum(0)))
    kv_len = numbers(1, _MAX_POSITIONS - 700, size)
    draft_index = torch.where(is_draft, numbers(0, max(1, k), size), 0)
    slot = torch.arange(size).repeat_interleave(num_logits)
    index = torch.arange(len(slot)) - logit_start[:-1][slot]
    first = (kv_len + draft_index + num_rows - num_logits + 1)[slot]
    logits = _logits(case, len(slot) + _PADDING, generator)
    token_ids = numbers(0, _ALPHABET, size, _MAX_POSITIONS)
    _agree_sometimes(logits, token_ids, slot, first + index)
    probabilities = torch.randn(size, k, case.vocab_size, generator=generator).mul_(4).softmax(dim=2)
    temperature = torch.where(numbers(0, 2, size).bool(), torch.rand(size, generator=generator) + 0.1, 0.0)
    choices = (_chosen(values, size, generator) for values in (_MIN_P, (*_TOP_K, case.vocab_size + 5), _TOP_P))
    min_p, top_k, top_p = choices
    step = RandomStep(
        case=case,
        phase=phase.int(),
        row_start=row_start.int(),
        logit_start=logit_start.int(),
        draft_index=draft_index.int(),
        block_rows=block_rows.int(),
        kv_len=kv_len.int(),
        recent_start=(kv_len - numbers(0, 50, size)).clamp(min=0).int(),
        token_ids=token_ids,
        temperature=temperature,
        min_p=min_p,
        top_k=top_k.long(),
        top_p=top_p,
        seed=numbers(0, 2**62, size),
        draft_probs=probabilities,
        logits=logits.to(dtype),
        logit_slot=torch.cat((slot, torch.full((_PADDING,), -1))).int(),
        logit_position=torch.cat((first + index, torch.zeros(_PADDING, dtype=torch.int64))).int(),
    )
    return _on(step, device)


def with_all_cuts(step: RandomStep, temperature: float) -> RandomStep:
    """Every slot sampled, each with other cuts: one slot for each of NUM_CUTS."""
    device = step.phase.device
    cuts = list(
        product(dict.fromkeys(_MIN_P), dict.fromkeys((*_TOP_K, step.case.vocab_size + 5)), dict.fromkeys(_TOP_P))
    )
    min_p, top_k, top_p = (list(values) for values in zip(*cuts, strict=True))
    return replace(
        step,
        temperature=torch.full_like(step.temperature, temperature),
        min_p=torch.tensor(min_p, device=device),
        top_k=torch.tensor(top_k, device=device),
        top_p=torch.tensor(top_p, device=device),
    )


def step_rows_inputs(step: RandomStep) -> StepRowsInputs[Tensor]:
    """With pages to grant; what the op writes is poisoned."""
    size, device = step.case.num_slots, step.phase.device
    num_rows, num_logits = int(step.row_start[-1]) + _PADDING, len(step.logit_slot)

    def poison(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.full(shape, -77, dtype=dtype, device=device)

    grants = torch.randperm(size * _MAX_PAGES)[:6]
    return StepRowsInputs(
        row_start=step.row_start,
        phase=step.phase,
        draft_index=step.draft_index,
        logit_start=step.logit_start,
        num_grants=torch.tensor([min(5, len(grants))], dtype=torch.int32, device=device),
        grant_place=grants.int().to(device),
        grant_page=torch.arange(100, 100 + len(grants), dtype=torch.int32, device=device),
        kv_len=step.kv_len,
        recent_start=step.recent_start,
        lookup_budget=torch.randint(0, step.case.max_lookups + 1, (size,), dtype=torch.int32).to(device),
        token_ids=step.token_ids,
        page_table=poison(size, _MAX_PAGES),
        lookups=poison(size, step.case.max_lookups),
        num_lookups=poison(size),
        row_token=poison(num_rows, dtype=torch.int64),
        logit_rows=poison(num_logits, dtype=torch.int64),
        logit_slot=poison(num_logits),
        logit_position=poison(num_logits),
        scored_slot=poison(size),
    )


def sample_inputs(step: RandomStep) -> SampleRowsInputs[Tensor]:
    """Of copies of what the op writes."""
    return SampleRowsInputs(
        logits=step.logits,
        logit_slot=step.logit_slot,
        logit_position=step.logit_position,
        phase=step.phase,
        draft_index=step.draft_index,
        temperature=step.temperature,
        min_p=step.min_p,
        top_k=step.top_k,
        top_p=step.top_p,
        seed=step.seed,
        draft_probs=step.draft_probs.clone(),
        token_ids=step.token_ids.clone(),
    )


def accept_inputs(step: RandomStep, statistics: RowStatistics[Tensor]) -> AcceptDraftsInputs[Tensor]:
    """Of copies of what the op writes; some requests end within their blocks, some found fewer drafts."""
    size, device, k = step.case.num_slots, step.phase.device, step.case.draft_len
    generator = torch.Generator().manual_seed(int(step.seed[0]) % 1000)

    def numbers(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=generator, dtype=torch.int32).to(device)

    num_rows = step.row_start[1:] - step.row_start[:-1]
    scored = (step.block_rows > 0) & (numbers(0, 4, size) > 0)
    return AcceptDraftsInputs(
        logits=step.logits,
        row_max=statistics.row_max,
        row_sum=statistics.row_sum,
        row_token=statistics.row_token,
        row_cut_logit=statistics.row_cut_logit,
        row_cut_token=statistics.row_cut_token,
        draft_probs=step.draft_probs,
        row_start=step.row_start,
        phase=step.phase,
        logit_start=step.logit_start,
        block_rows=step.block_rows,
        score_rows=torch.where(scored, step.block_rows, 0),
        score_index=(scored.cumsum(0) - 1).clamp(min=0).int(),
        num_drafts=(k - numbers(0, 2, size) * numbers(0, k + 1, size)).clamp(min=0),
        temperature=step.temperature,
        seed=step.seed,
        end_len=step.kv_len + num_rows + numbers(-1, 9, size).clamp(min=0) - (step.block_rows - 1).clamp(min=0) // 2,
        budget_split=numbers(0, 200, _MAX_POSITIONS, len(BUDGET_PARTS)),
        token_ids=step.token_ids.clone(),
        kv_len=step.kv_len.clone(),
        recent_start=step.recent_start.clone(),
        num_staying=numbers(0, 9, size),
        num_moving=numbers(0, 9, size),
        lookup_budget=numbers(0, 9, size),
        scored_slot=torch.full_like(step.phase, -1),
        moving_shift=torch.zeros_like(step.phase),
        results=torch.full((size, len(RESULT_FIELDS) + k + 1), -77, dtype=torch.int32, device=device),
    )


def _logits(case: StepCase, num_rows: int, generator: torch.Generator) -> Tensor:
    spread = torch.randn(num_rows, case.vocab_size, generator=generator) * 4
    if case.logits == "tied":
        return spread.round()
    if case.logits == "equal":
        return torch.ones_like(spread)
    if case.logits == "zeros":
        return spread.sign() * spread.abs().sub(3).clamp(min=0)
    if case.logits == "masked":
        return spread.masked_fill(torch.rand(spread.shape, generator=generator) < 0.5, -torch.inf)
    return spread


def _chosen(values: tuple[float, ...], size: int, generator: torch.Generator) -> Tensor:
    return torch.tensor(values)[torch.randint(0, len(values), (size,), generator=generator)]


def _agree_sometimes(logits: Tensor, token_ids: Tensor, slot: Tensor, position: Tensor) -> None:
    """Most tokens of the text are likely ones."""
    for row, (of, at) in enumerate(zip(slot.tolist(), position.tolist(), strict=True)):
        if (row * 7919) % 5:
            logits[row, token_ids[of, at]] = 25.0


def _on(step: RandomStep, device: torch.device) -> RandomStep:
    moved = {name: value.to(device) for name, value in vars(step).items() if isinstance(value, Tensor)}
    return RandomStep(case=step.case, **moved)
