"""From logits to a distribution to a token; the same for drafts and targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsespec.runtime.device.cuts import CutRules, find_cuts
from sparsespec.runtime.device.rng import exponentials
from sparsespec.runtime.device.slot_state import SlotState
from sparsespec.runtime.sampling_params import LogitNeeds, SamplingNeeds


@dataclass(frozen=True)
class TokenHistory:
    """The tokens of every slot, of which a row counts those before its position."""

    token_ids: Tensor  # [B, max_positions + 1] int64: prompt, output, this cycle's drafts
    prompt_len: Tensor  # [B] int64
    draft_len: int  # rows of one slot stand at most so many positions apart


@dataclass(frozen=True)
class RowSampling:
    """Parameters of each of n logit rows."""

    history: TokenHistory
    slot: Tensor  # [n] int64
    position: Tensor  # [n] int64: position of the token that the row decides
    seed: Tensor  # [n] int64
    repetition_penalty: Tensor  # [n], 1 for none
    presence_penalty: Tensor  # [n], 0 for none
    frequency_penalty: Tensor  # [n], 0 for none
    temperature: Tensor  # [n], 0 for greedy
    min_p: Tensor  # [n], 0 for all
    top_k: Tensor  # [n] int64, 0 for all
    top_p: Tensor  # [n]
    min_len: Tensor  # [n] int64
    stop_token_ids: Tensor  # [n, MAX_STOP_TOKEN_IDS] int64

    @staticmethod
    def of(state: SlotState, slot: Tensor, position: Tensor) -> RowSampling:
        """Gather the parameters of rows that belong to slots [n]."""
        return RowSampling(
            history=TokenHistory(state.token_ids, state.prompt_len, draft_len=state.draft_probs.shape[1]),
            slot=slot,
            position=position,
            seed=state.seed[slot],
            repetition_penalty=state.repetition_penalty[slot],
            presence_penalty=state.presence_penalty[slot],
            frequency_penalty=state.frequency_penalty[slot],
            temperature=state.temperature[slot],
            min_p=state.min_p[slot],
            top_k=state.top_k[slot],
            top_p=state.top_p[slot],
            min_len=state.min_len[slot],
            stop_token_ids=state.stop_token_ids[slot],
        )


def probabilities(logits: Tensor, rows: RowSampling, needs: Sequence[SamplingNeeds]) -> Tensor:
    """Distributions [n, vocab] to sample from, fp32, or fp64 for fp64 logits. In vLLM's order:

    1. penalties on the raw logits, for the tokens before the row's position: repetition, frequency, presence
    2. stop tokens masked while too early
    3. greedy rows end here: one-hot, the lowest token of equal logits
    4. temperature
    5. the cuts min_p, top_k and top_p, in this order: see find_cuts

    A row's result depends on its request's parameters and the tokens before its position, nothing else: a draft and the
    row that verifies it follow the same rule, and whoever shares the step changes no bit. needs: of the requests that
    the rows belong to, in any order; what none of them needs is not computed.
    """
    allowed = allowed_logits(logits, rows, LogitNeeds.of(needs))
    one_hot = torch.zeros_like(allowed).scatter_(1, allowed.argmax(dim=1, keepdim=True), 1.0)
    if not any(need.probabilities for need in needs):
        return one_hot
    greedy = (rows.temperature == 0)[:, None]
    below_best = allowed - allowed.amax(dim=1, keepdim=True)  # a tiny temperature may overflow towards -inf only
    scaled = below_best / rows.temperature[:, None].masked_fill(greedy, 1.0)
    if any(need.cuts for need in needs):
        temperature = rows.temperature.masked_fill(greedy[:, 0], 1.0)
        cuts = find_cuts(allowed, CutRules(temperature, rows.min_p, rows.top_k, rows.top_p))
        scaled = scaled.masked_fill(~cuts.keep(allowed), -torch.inf)
    return torch.where(greedy, one_hot, scaled.softmax(dim=1))


def allowed_logits(logits: Tensor, rows: RowSampling, needs: LogitNeeds) -> Tensor:
    """Steps 1 and 2 of `probabilities`: [n, vocab], fp32, or fp64 for fp64 logits. The host waits for nothing."""
    allowed = exact(logits)
    if needs.penalties:
        allowed = _penalise(allowed, rows)
    if needs.early_stops:
        allowed = _mask_early_stops(allowed, rows)
    return allowed


def exact(logits: Tensor) -> Tensor:
    """In fp64 if they are, or else in fp32."""
    return logits.to(torch.float64 if logits.dtype == torch.float64 else torch.float32)


def draw(distribution: Tensor, uniform: Tensor) -> Tensor:
    """Tokens [n] by inverse transform of distribution [n, vocab], normalised or not, at uniform [n] in [0, 1)."""
    cumulative = distribution.double().cumsum(dim=1)
    target = uniform[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True).squeeze(1).clamp(max=distribution.shape[1] - 1)


def race(distribution: Tensor, seed: Tensor, position: Tensor) -> Tensor:
    """Tokens [n] drawn from distribution [n, vocab], normalised or not, by the numbers of seeds and positions [n].

    Whoever draws at a position uses the same numbers, so a draft and its verification mostly agree (coupling gumbel).
    """
    times = exponentials(seed, position, distribution.shape[1]) / distribution.double()
    return times.argmin(dim=1)


def count_tokens(rows: RowSampling, vocab_size: int) -> tuple[Tensor, Tensor]:
    """[n, vocab] int32: how often each token stands in the row's prompt, and after it before the row's position.

    What lies at a position and beyond, rejected drafts and a former owner's tokens, does not count. Rows of one slot
    share the count up to the first of them: counting every row's whole history would take [n, max_positions].
    """
    history, slot = rows.history, rows.slot
    first = torch.zeros_like(history.prompt_len)
    first = first.scatter_reduce(0, slot, rows.position, "amin", include_self=False)
    place = torch.arange(history.token_ids.shape[1], device=slot.device)
    prompt = place < history.prompt_len[:, None]
    in_prompt = _count(history.token_ids, prompt, vocab_size)
    in_output = _count(history.token_ids, ~prompt & (place < first[:, None]), vocab_size)
    block = first[slot][:, None] + place[: history.draft_len]
    tokens = history.token_ids[slot[:, None], block.clamp(max=len(place) - 1)]
    return in_prompt[slot], in_output[slot] + _count(tokens, block < rows.position[:, None], vocab_size)


def _count(tokens: Tensor, counted: Tensor, vocab_size: int) -> Tensor:
    return counted.new_zeros(len(tokens), vocab_size, dtype=torch.int32).scatter_add_(1, tokens, counted.int())


def _penalise(logits: Tensor, rows: RowSampling) -> Tensor:
    in_prompt, in_output = count_tokens(rows, logits.shape[1])
    repetition = rows.repetition_penalty[:, None]
    scaled = torch.where(logits > 0, logits / repetition, logits * repetition)
    scaled = scaled.clamp(max=torch.finfo(logits.dtype).max)  # a tiny penalty may overflow, and inf has no softmax
    repeated = torch.where(in_prompt + in_output > 0, scaled, logits)
    frequency, presence = rows.frequency_penalty[:, None], rows.presence_penalty[:, None]
    return repeated - frequency * in_output - presence * (in_output > 0)


def _mask_early_stops(logits: Tensor, rows: RowSampling) -> Tensor:
    early = (rows.position < rows.min_len)[:, None]
    stops = logits.gather(1, rows.stop_token_ids).masked_fill(early, -torch.inf)
    return logits.scatter(1, rows.stop_token_ids, stops)
