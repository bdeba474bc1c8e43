"""Which tokens of the past become pillars: one seam for every rule that goes by the scores of verified rows.

Every rule states the bytes it reads for a selection and the state it keeps per slot; N is kv_len, in elements times
num_layers * num_kv_heads.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from sparsespec.plugins.pillar_attention.inputs import ScorePlanes
from sparsespec.plugins.pillar_attention.reference import mean_diagonal
from sparsespec.runtime.config import SpeculationConfig


@dataclass(frozen=True)
class ScoredBlocks:
    """S blocks whose rows were scored: verifications, and the ends of prompts."""

    planes: Tensor  # [num_layers, max_scored, planes, num_kv_heads, max_positions]: theirs come first; see ScorePlanes
    slot: Tensor  # [S] int64
    num_rows: Tensor  # [S] int64: scored rows
    last_row: Tensor  # [S] int64: of them, the last that stands; the next row to come is the first draft
    kv_len: Tensor  # [S]: verified tokens, up to and with the last row that stands
    first: Tensor  # [S] bool: ends a prompt, so nothing before it counts
    history: Tensor  # [num_layers, B, num_kv_heads, max_positions], or empty: what AverageRanking keeps


@dataclass(frozen=True)
class RankedBlocks:
    """What PillarSelect goes by: see SelectInputs."""

    scores: Tensor  # [num_layers, S or more, 1 or 2 planes, num_kv_heads, max_positions]
    moving_shift: Tensor  # [S] int32


class SelectionRule(Protocol):
    """How pillars that stay are ranked, and those that move if there are any."""

    @property
    def score_planes(self) -> ScorePlanes:
        """What attention is to leave of the scored rows."""

    @property
    def keeps_history(self) -> bool:
        """Whether ScoredBlocks.history is needed."""

    def rank(self, blocks: ScoredBlocks) -> RankedBlocks:
        """From scored rows to one score per token, for pillars that stay and for those that move."""


@dataclass(frozen=True)
class AsScored:
    """The planes as attention left them: the mean over all scored rows (SparseSpec, section 4.1), and their diagonal.

    Reads N of each plane in PillarSelect itself and computes nothing, keeps nothing.
    """

    moves: bool

    @property
    def score_planes(self) -> ScorePlanes:
        """See SelectionRule."""
        return "diagonal" if self.moves else "mean"

    @property
    def keeps_history(self) -> bool:
        """See SelectionRule."""
        return False

    def rank(self, blocks: ScoredBlocks) -> RankedBlocks:
        """See SelectionRule. The diagonal is anchored at the block's first row."""
        return RankedBlocks(blocks.planes, blocks.last_row.int() + 1)


@dataclass(frozen=True)
class Ranked:
    """Planes computed from those that attention left."""

    score_planes: ScorePlanes
    keeps_history: bool
    staying: Ranking
    moving: MovingRanking | None

    def rank(self, blocks: ScoredBlocks) -> RankedBlocks:
        """See SelectionRule."""
        own = replace(blocks, planes=blocks.planes[:, : len(blocks.slot)])
        staying = self.staying.rank(own)
        if self.moving is None:
            return RankedBlocks(staying[:, :, None], torch.zeros_like(own.last_row, dtype=torch.int32))
        return RankedBlocks(torch.stack((staying, self.moving.rank(own)), dim=2), self.moving.shift(own).int())


class Ranking(Protocol):
    """From scored rows to one score per token."""

    def rank(self, blocks: ScoredBlocks) -> Tensor:
        """[num_layers, S, num_kv_heads, max_positions]."""


class MovingRanking(Ranking, Protocol):
    """Where pillars move from: position p of the first draft row where `rank` has p - shift."""

    def shift(self, blocks: ScoredBlocks) -> Tensor:
        """[S]."""


@dataclass(frozen=True)
class MeanRanking:
    """The mean over all scored rows. Reads N of a plane, keeps nothing."""

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
        """See MovingRanking."""
        place = torch.arange(len(blocks.slot), device=blocks.slot.device)
        return blocks.planes[:, place, blocks.last_row]

    def shift(self, blocks: ScoredBlocks) -> Tensor:
        """See MovingRanking."""
        return torch.ones_like(blocks.last_row)


@dataclass(frozen=True)
class MovingFromDiagonal:
    """Pillars that move go on where the rows of the block moved along together. Reads N; kernels emit it as a plane."""

    per_row: bool  # whether the planes are rows; else the second plane is their diagonal

    def rank(self, blocks: ScoredBlocks) -> Tensor:
        """See MovingRanking."""
        num_rows = blocks.num_rows[None, :, None, None]
        return mean_diagonal(blocks.planes, num_rows) if self.per_row else blocks.planes[:, :, 1]

    def shift(self, blocks: ScoredBlocks) -> Tensor:
        """The diagonal is anchored at the block's first row."""
        return blocks.last_row + 1


def make_selection_rule(config: SpeculationConfig) -> SelectionRule:
    """The rule that config names."""
    moves = config.moving_share > 0
    per_row = config.ranking == "accepted" or (moves and config.moving_from == "last")
    if config.ranking == "mean" and not per_row:
        return AsScored(moves)
    ranking: Ranking = AcceptedRanking() if config.ranking == "accepted" else MeanRanking(per_row)
    if config.ranking == "average":
        ranking = AverageRanking(ranking, config.decay)
    moving: MovingRanking = MovingFromLast() if config.moving_from == "last" else MovingFromDiagonal(per_row)
    return Ranked(
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
