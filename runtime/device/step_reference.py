"""StepOps in torch, from the parts that decide a step of varying shapes. Lengths are read on the host: it waits."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from sparsespec.plugins.accept_drafts.inputs import AcceptDraftsInputs
from sparsespec.plugins.phase import Phase
from sparsespec.plugins.sample_rows.inputs import RowStatistics, SampleRowsInputs
from sparsespec.plugins.step_rows.inputs import StepRowsInputs
from sparsespec.runtime.device.acceptance import Block, count_accepted, next_token
from sparsespec.runtime.device.cuts import CutRules, Cuts, find_cuts
from sparsespec.runtime.device.lookup import find_lookups
from sparsespec.runtime.device.rng import Purpose, uniform
from sparsespec.runtime.device.sampling import draw, race


class ReferenceStepOps:
    """See step_ops.StepOps."""

    def step_rows(self, inputs: StepRowsInputs[Tensor]) -> None:
        """See StepOps."""
        _grant_pages(inputs)
        _place_rows(inputs)
        _look_up(inputs)
        inputs.scored_slot.fill_(-1)

    def sample_rows(self, inputs: SampleRowsInputs[Tensor]) -> RowStatistics[Tensor]:
        """See StepOps."""
        exact = inputs.logits.to(inputs.temperature.dtype)
        rules = _cut_rules(inputs)
        sampled = rules.temperature > 0
        cuts = find_cuts(exact, replace(rules, temperature=_divisor(rules.temperature)))
        row_max, row_token = exact.max(dim=1).values, exact.argmax(dim=1)
        weights = _weights(exact, row_max, rules.temperature, cuts)
        if inputs.draft_probs is None:
            owner = inputs.logit_slot.clamp(min=0)
            drawn = race(weights, inputs.seed[owner], inputs.logit_position.long())
            row_token, sampled = torch.where(sampled, drawn, row_token), torch.zeros_like(sampled)
        row_sum = torch.where(sampled, weights.sum(dim=1), 1)
        distribution = weights / row_sum[:, None]
        for row, slot in enumerate(inputs.logit_slot.tolist()):
            if slot >= 0 and inputs.phase[slot] == Phase.DRAFT:
                _draw_draft(inputs, row, slot, distribution[row], row_token[row])
        return RowStatistics(row_max, row_sum, row_token.int(), cuts.logit, cuts.token.int())

    def accept_drafts(self, inputs: AcceptDraftsInputs[Tensor]) -> None:
        """See StepOps."""
        for slot, phase in enumerate(inputs.phase.tolist()):
            if phase not in (Phase.PREFILL, Phase.VERIFY):
                continue
            if inputs.block_rows[slot] > 0:
                _end_block(inputs, slot)
            else:  # a chunk that ends before its prompt does
                inputs.kv_len[slot] += inputs.row_start[slot + 1] - inputs.row_start[slot]


def _grant_pages(inputs: StepRowsInputs[Tensor]) -> None:
    count = int(inputs.num_grants)
    inputs.page_table.view(-1)[inputs.grant_place[:count].long()] = inputs.grant_page[:count]


def _place_rows(inputs: StepRowsInputs[Tensor]) -> None:
    for tensor, padding in (
        (inputs.row_token, 0),
        (inputs.logit_rows, 0),
        (inputs.logit_slot, -1),
        (inputs.logit_position, 0),
    ):
        tensor.fill_(padding)
    starts = (inputs.kv_len + inputs.draft_index).tolist()
    row_start, logit_start = inputs.row_start.tolist(), inputs.logit_start.tolist()
    for slot, start in enumerate(starts):
        first, end = row_start[slot : slot + 2]
        inputs.row_token[first:end] = inputs.token_ids[slot, start : start + end - first]
        logits = slice(*logit_start[slot : slot + 2])
        rows = torch.arange(end - (logits.stop - logits.start), end, device=inputs.row_token.device)
        inputs.logit_rows[logits] = rows
        inputs.logit_slot[logits] = slot
        inputs.logit_position[logits] = (start + rows - first + 1).int()


def _look_up(inputs: StepRowsInputs[Tensor]) -> None:
    slots = (inputs.phase == Phase.DRAFT).nonzero().squeeze(1)
    if len(slots) == 0:
        return
    length = (inputs.kv_len + inputs.draft_index)[slots].long() + 1
    most = inputs.lookups.shape[1]
    found, count = find_lookups(inputs.token_ids[slots], length, inputs.recent_start[slots], most)
    inputs.lookups[slots] = found
    inputs.num_lookups[slots] = torch.minimum(count, inputs.lookup_budget[slots])


def _cut_rules(inputs: SampleRowsInputs[Tensor]) -> CutRules:
    """Of each row; nobody's are greedy, and greedy ones have no cuts."""
    owner = inputs.logit_slot.clamp(min=0)
    temperature = torch.where(inputs.logit_slot < 0, 0, inputs.temperature[owner])
    greedy = temperature == 0
    return CutRules(
        temperature=temperature,
        min_p=torch.where(greedy, 0, inputs.min_p[owner]),
        top_k=torch.where(greedy, 0, inputs.top_k[owner]),
        top_p=torch.where(greedy, 1, inputs.top_p[owner]),
    )


def _weights(logits: Tensor, row_max: Tensor, temperature: Tensor, cuts: Cuts) -> Tensor:
    """[n, vocab] of rows [n]: the largest logit's is 1, and 0 what is cut."""
    weights = ((logits - row_max[:, None]) / _divisor(temperature)[..., None]).exp()
    return weights.masked_fill(~cuts.keep(logits), 0)


def _draw_draft(inputs: SampleRowsInputs[Tensor], row: int, slot: int, distribution: Tensor, best: Tensor) -> None:
    position, draft_index = inputs.logit_position[row].long(), inputs.draft_index[slot].long()
    token = best
    if inputs.draft_probs is not None and inputs.temperature[slot] > 0:
        inputs.draft_probs[slot, draft_index] = distribution
        number = uniform(inputs.seed[slot], position, Purpose.DRAFT + draft_index)
        token = draw(distribution[None], number[None])[0]
    inputs.token_ids[slot, position] = token


def _divisor(temperature: Tensor) -> Tensor:
    return torch.where(temperature > 0, temperature, 1)


def _end_block(inputs: AcceptDraftsInputs[Tensor], slot: int) -> None:
    first, end = inputs.logit_start[slot : slot + 2].tolist()
    position = inputs.kv_len[slot].long() + inputs.row_start[slot + 1] - inputs.row_start[slot] - (end - first) + 1
    drafts = position + torch.arange(end - first - 1, device=position.device)
    block = _block(inputs, slot, slice(first, end), inputs.token_ids[slot, drafts])
    seed = inputs.seed[slot]
    num_accepted = count_accepted(block, uniform(seed, drafts, torch.full_like(drafts, Purpose.ACCEPT))[None])
    after = position + num_accepted
    number = uniform(seed, after, torch.full_like(after, Purpose.TARGET))
    inputs.token_ids[slot, after] = next_token(block, num_accepted, number)
    _commit(inputs, slot, int(position), int(block.num_drafts), int(num_accepted))


def _block(inputs: AcceptDraftsInputs[Tensor], slot: int, logits: slice, drafts: Tensor) -> Block:
    """Of one slot. A greedy or coupled one's distributions are certain of one token."""
    temperature, vocab_size = inputs.temperature[slot], inputs.logits.shape[1]
    exact = inputs.logits[logits].to(temperature.dtype)
    cuts = Cuts(inputs.row_cut_logit[logits], inputs.row_cut_token[logits])
    target = _weights(exact, inputs.row_max[logits], temperature, cuts) / inputs.row_sum[logits, None]
    if inputs.draft_probs is None or temperature == 0:
        target = one_hot(inputs.row_token[logits].long(), vocab_size).to(exact.dtype)
        drafted = one_hot(drafts, vocab_size).to(exact.dtype)
    else:
        drafted = inputs.draft_probs[slot, : len(drafts)]
    num_drafts = inputs.num_drafts[slot, None].long().clamp(max=len(drafts))
    return Block(drafts[None], num_drafts, drafted[None], target[None])


def _commit(inputs: AcceptDraftsInputs[Tensor], slot: int, position: int, num_drafts: int, num_accepted: int) -> None:
    before = position - 1
    block_start = int(inputs.kv_len[slot] + inputs.row_start[slot + 1] - inputs.row_start[slot])
    block_start -= int(inputs.block_rows[slot])
    num_tokens = min(num_accepted + 1, int(inputs.end_len[slot]) - before)
    kv_len = before + num_tokens
    staying, recent, moving, lookups = inputs.budget_split[kv_len].tolist()
    recent_start = max(0, block_start - recent)
    inputs.kv_len[slot] = kv_len
    inputs.recent_start[slot] = recent_start
    counts = [min(part, recent_start) for part in (staying, moving, lookups)]
    inputs.num_staying[slot], inputs.num_moving[slot], inputs.lookup_budget[slot] = counts
    if inputs.score_rows[slot] > 0 and len(inputs.scored_slot) > 0:
        inputs.scored_slot[inputs.score_index[slot]] = slot
        inputs.moving_shift[inputs.score_index[slot]] = kv_len - block_start
    told = inputs.token_ids[slot, position : position + num_accepted + 1].tolist()
    row = [num_tokens, num_drafts, num_accepted, kv_len, recent_start, min(sum(counts), recent_start), *told]
    inputs.results[slot, : len(row)] = torch.tensor(row, dtype=torch.int32, device=inputs.results.device)
