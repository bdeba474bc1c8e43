"""Which tokens of the past become pillars: one seam for every rule that goes by the scores of verified rows.

Every rule states the bytes it reads for a selection and the state it keeps per slot; N is kv_len, in elements times
num_layers * num_kv_heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sparsespec.plugins.pillar_attention.inputs import ScorePlanes
from sparsespec.plugins.pillar_attention.reference import mean_diagonal
from sparsespec.plugins.pillar_select.reference import PillarScores
from sparsespec.runtime.config import SpeculationConfig


@dataclass(frozen=True)
class ScoredBlocks:
    """S blocks whose rows were scored: verifications, and the ends of prompts."""

    planes: Tensor  # [num_layers, S, planes, num_kv_heads, max_positions], see ScorePlanes
    slot: Tensor  # [S] int64
    num_rows: Tensor  # [S] int64: scored rows
    last_row: Tensor  # [S] int64: of them, the last that stands; the next row to come is the first draft
    kv_len: Tensor  # [S]: verified tokens, up to and with the last row that stands
    first: Tensor  # [S] bool: ends a prompt, so nothing before it counts
    history: Tensor  # [num_layers, B, num_kv_heads, max_positions], or empty: what AverageRanking keeps


class Ranking(Protocol):
    """From scored rows to one score per token."""

    def rank(self, blocks: ScoredBlocks) -> Tensor:
        """[num_layers, S, num_kv_heads, max_positions]."""


@dataclass(frozen=True)
class MeanRanking:
    """The paper's rule (SparseSpec, section 4.1): the mean over all scored rows. Reads N of a plane, keeps nothing."""

    per_row: bool  # whether the planes are rows; else the first plane is their mean

    def rank(self, blocks: ScoredBlocks) -> Tensor:
        """See Ranking."""
        return _mean_of_rows(blocks, blocks.num_rows) if self.per_row else blocks.planes[:, :, 0]


@dataclass(frozen=True)
class AcceptedRanking:
    """The mean over the rows that stand. Reads N for each of k + 1 rows, keeps nothing."""

    def rank(self, blocks: ScoredBlocks) -> Tensor:
        """See Ranking."""
        return _mean_of_rows(blocks, blocks.last_row + 1)


@dataclass(frozen=True)
class AverageRanking:
    """A moving average of another ranking over verifications. Reads that and N, keeps N per slot."""

    ranking: Ranking
    decay: float  # weight of the past

    def rank(self, blocks: ScoredBlocks) -> Tensor:
        """See Ranking; moves the average."""
        now, past = self.ranking.rank(blocks), blocks.history[:, blocks.slot]
        first = blocks.first[None, :, None, None]
        average = torch.where(first, now, self.decay * past + (1 - self.decay) * now)
        position = torch.arange(average.shape[3], device=average.device)
        # What lies beyond belongs to rejected drafts or to another request, not to the tokens that will stand there.
        average = average.masked_fill((position >= blocks.kv_len[:, None])[None, :, None], 0)
        blocks.history[:, blocks.slot] = average.to(past.dtype)
        return average


@dataclass(frozen=True)
class MovingFromLast:
    """Pillars that move start where the last row that stands looked, one token on. Reads N of k + 1 planes."""

    def rank(self, blocks: ScoredBlocks) -> Tensor:
        """Score at p for reading p in the first draft row, p + 1 in the next."""
        place = torch.arange(len(blocks.slot), device=blocks.slot.device)
        return _shifted(blocks.planes[:, place, blocks.last_row], torch.ones_like(blocks.last_row))


@dataclass(frozen=True)
class MovingFromDiagonal:
    """Pillars that move go on where the rows of the block moved along together. Reads N; kernels emit it as a plane."""

    per_row: bool  # whether the planes are rows; else the second plane is their diagonal

    def rank(self, blocks: ScoredBlocks) -> Tensor:
        """As MovingFromLast.rank: the diagonal is anchored at the block's first row."""
        planes, num_rows = blocks.planes, blocks.num_rows[None, :, None, None]
        diagonal = mean_diagonal(planes, num_rows) if self.per_row else planes[:, :, 1]
        return _shifted(diagonal, blocks.last_row + 1)


@dataclass(frozen=True)
class SelectionRule:
    """How pillars that stay are ranked, and those that move if there are any."""

    score_planes: ScorePlanes
    keeps_history: bool
    staying: Ranking
    moving: Ranking | None

    def scores(self, blocks: ScoredBlocks) -> PillarScores:
        """What PillarSelect goes by."""
        return PillarScores(self.staying.rank(blocks), None if self.moving is None else self.moving.rank(blocks))


def make_selection_rule(config: SpeculationConfig) -> SelectionRule:
    """The rule that config names."""
    moves = config.moving_share > 0
    per_row = config.ranking == "accepted" or (moves and config.moving_from == "last")
    ranking: Ranking = AcceptedRanking() if config.ranking == "accepted" else MeanRanking(per_row)
    if config.ranking == "average":
        ranking = AverageRanking(ranking, config.decay)
    moving: Ranking = MovingFromLast() if config.moving_from == "last" else MovingFromDiagonal(per_row)
    return SelectionRule(
        score_planes="rows" if per_row else "diagonal" if moves else "mean",
        keeps_history=config.ranking == "average",
        staying=ranking,
        moving=moving if moves else None,
    )


def _mean_of_rows(blocks: ScoredBlocks, num_rows: Tensor) -> Tensor:
    row = torch.arange(blocks.planes.shape[2], device=num_rows.device)
    # Planes beyond a short block's rows hold another block's scores, NaN if its model overflowed.
    others = (row >= num_rows[:, None])[None, :, :, None, None]
    return blocks.planes.masked_fill(others, 0).sum(dim=2) / num_rows[None, :, None, None]


def _shifted(scores: Tensor, steps: Tensor) -> Tensor:
    """scores [num_layers, S, num_kv_heads, positions], those of slot s moved on by steps[s] positions."""
    source = torch.arange(scores.shape[3], device=scores.device) - steps[:, None]
    index = source.clamp(min=0)[None, :, None].expand_as(scores)
    return scores.gather(3, index) * (source >= 0)[None, :, None]
