"""Rankings and moving rules against their definitions in numpy, one block at a time."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sparsespec.plugins.pillar_attention.inputs import ScorePlanes
from sparsespec.runtime.config import MovingName, RankingName, SpeculationConfig
from sparsespec.runtime.device.selection import ScoredBlocks, make_selection_rule

Array = NDArray[np.float64]
NUM_LAYERS, NUM_SLOTS, NUM_KV_HEADS, NUM_POSITIONS, K = 2, 4, 2, 24, 4


@dataclass(frozen=True)
class NaiveBlock:
    """One scored block: rows [num_rows, num_layers, num_kv_heads, tokens] of attention probabilities."""

    slot: int
    rows: Array
    last_row: int
    first: bool

    @property
    def block_start(self) -> int:
        return self.rows.shape[3] - len(self.rows)

    @property
    def kv_len(self) -> int:
        return self.block_start + self.last_row + 1


def naive_blocks(slots: list[int], first: bool, seed: int) -> list[NaiveBlock]:
    """Random blocks: short ones where they end a prompt, and rows rejected where they do not."""
    rng = np.random.default_rng(seed)
    blocks = []
    for slot in slots:
        num_rows = int(rng.integers(1, K + 2)) if first else K + 1
        tokens = int(rng.integers(num_rows, NUM_POSITIONS + 1))
        rows = rng.random((num_rows, NUM_LAYERS, NUM_KV_HEADS, tokens))
        seen = np.arange(tokens) <= (tokens - num_rows + np.arange(num_rows))[:, None]
        last_row = num_rows - 1 if first else int(rng.integers(num_rows))
        blocks.append(NaiveBlock(slot, rows * seen[:, None, None], last_row, first))
    return blocks


def planes_of(kind: ScorePlanes, block: NaiveBlock) -> list[Array]:
    """As PillarAttention leaves them, see ScorePlanes."""
    rows = list(block.rows)
    if kind == "rows":
        return rows
    mean = sum(rows) / len(rows)
    return [mean] if kind == "mean" else [mean, diagonal(block)]


def diagonal(block: NaiveBlock) -> Array:
    total = np.zeros(block.rows.shape[1:])
    for index, row in enumerate(block.rows):
        total[..., : row.shape[-1] - index] += row[..., index:]
    return total / len(block.rows)


def scored_blocks(kind: ScorePlanes, blocks: list[NaiveBlock], history: torch.Tensor, garbage: float) -> ScoredBlocks:
    """`garbage` stands wherever these blocks wrote nothing, and in a place that is nobody's."""
    num_planes = {"mean": 1, "diagonal": 2, "rows": K + 1}[kind]
    planes = torch.full(
        (NUM_LAYERS, len(blocks) + 1, num_planes, NUM_KV_HEADS, NUM_POSITIONS), garbage, dtype=torch.float64
    )
    for place, block in enumerate(blocks):
        for index, plane in enumerate(planes_of(kind, block)):
            planes[:, place, index, :, : plane.shape[-1]] = torch.from_numpy(plane)
    return ScoredBlocks(
        planes=planes,
        slot=torch.tensor([block.slot for block in blocks]),
        num_rows=torch.tensor([len(block.rows) for block in blocks]),
        last_row=torch.tensor([block.last_row for block in blocks], dtype=torch.int32),
        kv_len=torch.tensor([block.kv_len for block in blocks], dtype=torch.int32),
        first=torch.tensor([block.first for block in blocks]),
        history=history,
    )


def no_history() -> torch.Tensor:
    return torch.zeros(NUM_LAYERS, 0, NUM_KV_HEADS, NUM_POSITIONS, dtype=torch.float64)


def mean_of(block: NaiveBlock, num_rows: int) -> Array:
    return sum(block.rows[:num_rows]) / num_rows


def assert_scores(found: torch.Tensor, expected: list[Array], blocks: list[NaiveBlock]) -> None:
    """Of the blocks' tokens before each block, where pillars come from; what is found beyond is of no account."""
    for place, (block, scores) in enumerate(zip(blocks, expected, strict=True)):
        past = slice(0, block.block_start)
        np.testing.assert_allclose(found[:, place, :, past].numpy(), scores[..., past], rtol=1e-12)


def config_of(
    ranking: RankingName = "mean", moving_share: float = 0.0, moving_from: MovingName = "diagonal"
) -> SpeculationConfig:
    return SpeculationConfig(k=K, ranking=ranking, decay=0.6, moving_share=moving_share, moving_from=moving_from)


CASES = st.tuples(
    st.permutations(range(NUM_SLOTS)), st.integers(1, NUM_SLOTS), st.booleans(), st.integers(0, 2**32)
).map(lambda case: naive_blocks(list(case[0][: case[1]]), case[2], case[3]))
GARBAGE = st.sampled_from([0.0, 9.0, float("nan")])


@settings(max_examples=60, deadline=None)
@given(
    blocks=CASES,
    garbage=GARBAGE,
    ranking=st.sampled_from(["mean", "accepted"]),
    moving=st.sampled_from([None, "diagonal", "last"]),
)
def test_scores_of_blocks(
    blocks: list[NaiveBlock], garbage: float, ranking: RankingName, moving: MovingName | None
) -> None:
    """Planes beyond a short block's rows, and positions beyond its tokens, are other requests': any number, or NaN."""
    config = config_of(ranking) if moving is None else config_of(ranking, 0.25, moving)
    rule = make_selection_rule(config)
    found = rule.rank(scored_blocks(rule.score_planes, blocks, no_history(), garbage))
    counted = [len(block.rows) if ranking == "mean" else block.last_row + 1 for block in blocks]
    assert_scores(found.scores[:, :, 0], [mean_of(*part) for part in zip(blocks, counted, strict=True)], blocks)
    assert found.scores.shape[2] == (1 if moving is None else 2)
    assert found.moving_shift.dtype == torch.int32
    if moving is not None:
        expected = [block.rows[block.last_row] if moving == "last" else diagonal(block) for block in blocks]
        assert_scores(found.scores[:, :, 1], expected, blocks)
        shifts = [1 if moving == "last" else block.last_row + 1 for block in blocks]
        assert found.moving_shift.tolist() == shifts


@pytest.mark.parametrize("moving_share", [0.0, 0.25])
def test_the_shipped_ranking_computes_nothing(moving_share: float) -> None:
    """PillarSelect reads what attention left, in its place."""
    rule = make_selection_rule(config_of(moving_share=moving_share))
    blocks = scored_blocks(rule.score_planes, naive_blocks([2, 0], False, 1), no_history(), 0.0)
    assert rule.rank(blocks).scores is blocks.planes


def test_average_over_verifications() -> None:
    """Decays past scores, starts afresh at a prompt, and gives a new token nothing from whatever stood there before."""
    rule = make_selection_rule(config_of("average"))
    history = torch.full((NUM_LAYERS, NUM_SLOTS, NUM_KV_HEADS, NUM_POSITIONS), torch.nan, dtype=torch.float64)
    expected = {slot: np.zeros((NUM_LAYERS, NUM_KV_HEADS, NUM_POSITIONS)) for slot in range(NUM_SLOTS)}
    for seed, slots in enumerate([[2, 0], [0], [2, 0, 3], [0, 3], [3, 2], [2], [0, 2]]):
        # Steps 0, 2 and 4 end prompts: the last two of them of requests that take over a slot.
        blocks = naive_blocks(slots, first=seed in (0, 2, 4), seed=seed)
        for block in blocks:
            now = np.zeros_like(expected[block.slot])
            now[..., : block.rows.shape[3]] = mean_of(block, len(block.rows))
            average = now if block.first else 0.6 * expected[block.slot] + 0.4 * now
            expected[block.slot] = np.where(np.arange(NUM_POSITIONS) < block.kv_len, average, 0)
        found = rule.rank(scored_blocks("mean", blocks, history, garbage=torch.nan))
        assert_scores(found.scores[:, :, 0], [expected[block.slot] for block in blocks], blocks)
        for block in blocks:
            np.testing.assert_allclose(history[:, block.slot].numpy(), expected[block.slot], rtol=1e-12)
    assert history[:, 1].isnan().all()


@pytest.mark.parametrize("moving_from", ["diagonal", "last"])
def test_attention_that_moves_along_goes_on(moving_from: MovingName) -> None:
    """Rows at 20, 21 and 22 look 12 back, and always at 3; two of them stand. So the next row, at 22, looks at 10."""
    rows = np.zeros((3, 1, 1, NUM_POSITIONS - 1))
    for index in range(3):
        rows[index, 0, 0, [3, 8 + index]] = (0.7, 0.3)
    block = NaiveBlock(0, rows, last_row=1, first=False)
    rule = make_selection_rule(config_of(moving_share=0.25, moving_from=moving_from))
    planes = torch.zeros(1, 1, 5, 1, NUM_POSITIONS)
    for index, plane in enumerate(planes_of(rule.score_planes, block)):
        planes[0, 0, index, 0, : plane.shape[-1]] = torch.from_numpy(plane[0, 0])
    blocks = replace(
        scored_blocks("mean", [], no_history(), 0.0),
        planes=planes,
        num_rows=torch.tensor([3]),
        last_row=torch.tensor([1]),
        slot=torch.tensor([0]),
    )
    ranked = rule.rank(blocks)
    scores, shift = ranked.scores[0, 0, 1, 0], int(ranked.moving_shift[0])
    assert scores[10 - shift] == pytest.approx(0.3)
    assert scores[3] == pytest.approx(0.7 if moving_from == "last" else 0.7 / 3)


@pytest.mark.parametrize(
    ("config", "planes"),
    [
        (config_of(), "mean"),
        (config_of("average"), "mean"),
        (config_of("mean", 0.1, "diagonal"), "diagonal"),
        (config_of("average", 0.1, "diagonal"), "diagonal"),
        (config_of("mean", 0.1, "last"), "rows"),
        (config_of("accepted"), "rows"),
        (config_of("accepted", 0.1, "diagonal"), "rows"),
    ],
)
def test_no_more_planes_than_a_rule_needs(config: SpeculationConfig, planes: ScorePlanes) -> None:
    assert make_selection_rule(config).score_planes == planes
