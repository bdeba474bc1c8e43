"""Speculative rejection sampling: exact integrals over a fine grid, and brute force for greedy."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from chi_square import FALSE_ALARM_RATE, p_value
from sparsespec.runtime.device.acceptance import Block, count_accepted, next_token

VOCAB = 4
GRID = 2000


def random_distributions(*shape: int, seed: int) -> Tensor:
    """Peaked ones, some with zeros."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(*shape, VOCAB, generator=generator, dtype=torch.float64) ** 3
    weights[weights < 0.02] = 0
    weights += weights.sum(dim=-1, keepdim=True) == 0
    return weights / weights.sum(dim=-1, keepdim=True)


def midpoints() -> Tensor:
    return (torch.arange(GRID, dtype=torch.float64) + 0.5) / GRID


def one_draft_block(draft_token: int, draft: Tensor, target: Tensor, size: int) -> Block:
    return Block(
        drafts=torch.full((size, 1), draft_token),
        num_drafts=torch.ones(size, dtype=torch.int64),
        draft_probs=draft.expand(size, 1, -1),
        target_probs=target.expand(size, 2, -1),
    )


def first_token_distribution(draft: Tensor, target: Tensor) -> Tensor:
    """Exact over draft tokens; over both uniform numbers by midpoints, so right to about 1 / GRID."""
    emitted = torch.zeros(VOCAB, dtype=torch.float64)
    for token in range(VOCAB):
        block = one_draft_block(token, draft, target, GRID)
        accepted = count_accepted(block, midpoints()[:, None]).double().mean()
        after = next_token(block, torch.zeros(GRID, dtype=torch.int64), midpoints())
        emitted[token] += draft[token] * accepted
        emitted += draft[token] * (1 - accepted) * after.bincount(minlength=VOCAB) / GRID
    return emitted


@pytest.mark.parametrize("seed", range(12))
def test_the_first_token_follows_the_target_for_any_draft(seed: int) -> None:
    draft, target = random_distributions(2, seed=seed)
    torch.testing.assert_close(first_token_distribution(draft, target), target, atol=4 / GRID, rtol=0)


@pytest.mark.parametrize("target", [[1.0, 0, 0, 0], [0, 0.5, 0.5, 0], [0.25] * 4])
@pytest.mark.parametrize("draft", [[1.0, 0, 0, 0], [0, 0, 0, 1.0], [0.25] * 4])
def test_the_first_token_follows_the_target_at_the_extremes(draft: list[float], target: list[float]) -> None:
    found = first_token_distribution(torch.tensor(draft).double(), torch.tensor(target).double())
    torch.testing.assert_close(found, torch.tensor(target).double(), atol=4 / GRID, rtol=0)


def test_whole_sequences_follow_the_target() -> None:
    """Three tokens from a block of two drafts, chi-square at a false-alarm rate of 1e-6; what it lacks is sampled."""
    size, generator = 200_000, torch.Generator().manual_seed(5)
    draft, target = random_distributions(1 + VOCAB, seed=1), random_distributions(1 + VOCAB + VOCAB**2, seed=2)
    first = torch.multinomial(draft[0], size, True, generator=generator)
    second = torch.multinomial(draft[1 + first], 1, generator=generator)[:, 0]
    block = Block(
        drafts=torch.stack((first, second), dim=1),
        num_drafts=torch.full((size,), 2),
        draft_probs=torch.stack((draft[0].expand(size, -1), draft[1 + first]), dim=1),
        target_probs=torch.stack(
            (target[0].expand(size, -1), target[1 + first], target[1 + VOCAB + VOCAB * first + second]), dim=1
        ),
    )
    accepted = count_accepted(block, torch.rand(size, 2, generator=generator, dtype=torch.float64))
    after = next_token(block, accepted, torch.rand(size, generator=generator, dtype=torch.float64))
    x = torch.where(accepted >= 1, first, after)
    more = torch.multinomial(target[1 + x], 1, generator=generator)[:, 0]
    y = torch.where(accepted >= 2, second, torch.where(accepted == 1, after, more))
    more = torch.multinomial(target[1 + VOCAB + VOCAB * x + y], 1, generator=generator)[:, 0]
    z = torch.where(accepted == 2, after, more)
    assert accepted.bincount(minlength=3).min() > size // 50
    expected = target[0][:, None, None] * target[1 : 1 + VOCAB, :, None] * target[1 + VOCAB :].view(VOCAB, VOCAB, VOCAB)
    counts = ((x * VOCAB + y) * VOCAB + z).bincount(minlength=VOCAB**3)
    assert p_value(counts, expected.flatten()) > FALSE_ALARM_RATE


def greedy_block(cases: list[tuple[tuple[int, ...], tuple[int, ...]]]) -> Block:
    """Per case the drafts and the model's own choices, one more of them."""
    drafts = torch.tensor([case[0] for case in cases])
    choices = torch.tensor([case[1] for case in cases])
    return Block(
        drafts=drafts,
        num_drafts=torch.full((len(cases),), drafts.shape[1]),
        draft_probs=torch.nn.functional.one_hot(drafts, 3).float(),
        target_probs=torch.nn.functional.one_hot(choices, 3).float(),
    )


def longest_match(drafts: tuple[int, ...], choices: tuple[int, ...]) -> int:
    return next((i for i, draft in enumerate(drafts) if draft != choices[i]), len(drafts))


@pytest.mark.parametrize("number", [0.0, 0.5, 1 - 2.0**-53])
def test_greedy_accepts_the_longest_matching_prefix(number: float) -> None:
    """All drafts and choices of three tokens; the random numbers do not matter."""
    cases = [(values[:2], values[2:]) for values in product(range(3), repeat=5)]
    block = greedy_block(cases)
    accepted = count_accepted(block, torch.full((len(cases), 2), number, dtype=torch.float64))
    after = next_token(block, accepted, torch.full((len(cases),), number, dtype=torch.float64))
    expected = [longest_match(*case) for case in cases]
    assert accepted.tolist() == expected
    assert after.tolist() == [choices[count] for (_, choices), count in zip(cases, expected, strict=True)]


def test_padded_blocks_give_what_they_give_alone() -> None:
    """Blocks of 0 to 3 drafts; the padding holds tokens that would be accepted."""
    size, width = 400, 3
    generator = torch.Generator().manual_seed(3)
    draft, target = random_distributions(size, width, seed=4), random_distributions(size, width + 1, seed=5)
    drafts = torch.stack([torch.multinomial(draft[:, i], 1, generator=generator)[:, 0] for i in range(width)], dim=1)
    num_drafts = torch.arange(size) % (width + 1)
    accept = 0.3 * torch.rand(size, width, generator=generator, dtype=torch.float64)
    number = torch.rand(size, generator=generator, dtype=torch.float64)
    padded = Block(drafts, num_drafts, draft, target)
    accepted = count_accepted(padded, accept)
    after = next_token(padded, accepted, number)
    for i in range(size):
        count = int(num_drafts[i])
        alone = Block(
            drafts[i, None, :count], num_drafts[i, None], draft[i, None, :count], target[i, None, : count + 1]
        )
        accepted_alone = count_accepted(alone, accept[i, None, :count])
        assert accepted_alone == accepted[i]
        assert next_token(alone, accepted_alone, number[i, None]) == after[i]
    assert (accepted == num_drafts).any()
    assert (accepted < num_drafts).any()


def test_a_residual_that_rounding_emptied_falls_back_to_the_target() -> None:
    distribution = torch.tensor([0.5, 0.5, 0.0, 0.0], dtype=torch.float64)
    block = one_draft_block(0, distribution, distribution, 2)
    tokens = next_token(block, torch.zeros(2, dtype=torch.int64), torch.tensor([0.1, 0.9], dtype=torch.float64))
    assert tokens.tolist() == [0, 1]
