"""What reads, copies and gathers do that count as ceilings, and which of them counts."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

import kernel_ceilings
from kernel_ceilings import (
    COPIES,
    GATHERS,
    READ_WORDS,
    READS,
    WRITE_SHARES,
    GatherShape,
    StreamShape,
    WriteCost,
    copy,
    copy_works,
    gather,
    measured_ceilings,
    read,
    read_and_write,
    read_works,
)
from kernel_timing import StepGraph, Work

WORDS = torch.randn(2**20).view(torch.int32)


def test_a_program_gathers_what_its_lanes_load() -> None:
    assert GatherShape(8, 4).block(64) == 64
    assert GatherShape(16, 1).block(16) == 128
    assert all(shape.block(padded) & (shape.block(padded) - 1) == 0 for shape in GATHERS for padded in (16, 32, 64))


def test_programs_take_whole_blocks() -> None:
    assert StreamShape(4, 8).width == 1024
    assert StreamShape(4, 8).programs(WORDS) == StreamShape(4, 8).blocks(WORDS) == 256
    with pytest.raises(ValueError, match="expected whole blocks of 4096 words, found 4000 words"):
        StreamShape(4, 8).blocks(WORDS[:4000])


@pytest.mark.parametrize("shape", [*READS, *COPIES], ids=str)
def test_shapes_divide_what_is_timed(shape: StreamShape) -> None:
    """No modifier together with a policy: PTX has no such instruction."""
    assert (READ_WORDS // 2) % (shape.loads * shape.width) == 0
    assert not (shape.cache and shape.evict)


def test_without_triton_torch_reads_and_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_ceilings, "find_spec", lambda _: None)
    (read_all,), (copy_all,) = read_works(WORDS), copy_works(WORDS)
    found = read_all()
    assert isinstance(found, torch.Tensor)
    assert torch.equal(found.amax(), WORDS.view(torch.float32).amax())
    assert torch.equal(torch.as_tensor(copy_all()), WORDS)


@pytest.mark.parametrize("best_read", [0, len(READS)])
@pytest.mark.parametrize("best_copy", [0, len(COPIES)])
def test_the_fastest_read_and_the_fastest_copy_count(
    monkeypatch: pytest.MonkeyPatch, best_read: int, best_copy: int
) -> None:
    """Each way may be the first or the last of its kind. 4 MiB in 2 ms, and 2 MiB read and written in 3 ms. Reads that
    write take 2.5 ms at the best, and 4 where they write twice as much.
    """

    def times(graphs: Sequence[StepGraph]) -> list[float]:
        found = [9.0] * len(graphs)
        found[best_read], found[1 + len(READS) + best_copy] = 2.0, 3.0
        found[-len(READS) - 1], found[-1] = 2.5, 4.0
        return found

    def not_run(work: Work) -> StepGraph:
        return StepGraph(work, work)

    monkeypatch.setattr(kernel_ceilings, "find_spec", lambda _: True)
    monkeypatch.setattr(kernel_ceilings, "captured", not_run)
    monkeypatch.setattr(kernel_ceilings, "timed_in_turn", times)
    ceilings = measured_ceilings(WORDS)
    assert ceilings.read == pytest.approx(4 * 2**20 / 2e6)
    assert ceilings.copy == pytest.approx(4 * 2**20 / 3e6)
    assert ceilings.writes == (WriteCost(128, 1.25), WriteCost(64, 2.0))


def test_without_triton_no_read_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_ceilings, "find_spec", lambda _: None)
    monkeypatch.setattr(kernel_ceilings, "captured", lambda work: StepGraph(work, work))
    monkeypatch.setattr(kernel_ceilings, "timed_in_turn", lambda graphs: [1.0] * len(graphs))
    assert measured_ceilings(WORDS).writes == ()


@pytest.mark.gpu
@pytest.mark.parametrize("shape", READS, ids=str)
@pytest.mark.parametrize("share", WRITE_SHARES)
def test_reads_that_write_miss_no_word(shape: StreamShape, share: int) -> None:
    """What is written are sums of the block's first columns."""
    pytest.importorskip("triton")
    blocks = 5000
    words = torch.randint(-1000, 1000, (blocks * shape.loads * shape.width,), dtype=torch.int32, device="cuda")
    target = torch.full((len(words) // share,), 7777, dtype=torch.int32, device="cuda")
    assert int(read_and_write(words, target, shape).sum()) == int(words.sum())
    columns = words.view(blocks, shape.loads, shape.width).sum(dim=1)
    assert torch.equal(target.view(blocks, -1), columns[:, : len(target) // blocks].int())


@pytest.mark.gpu
@pytest.mark.parametrize("shape", READS, ids=str)
@pytest.mark.parametrize("blocks", [1, 5000])
def test_reads_miss_no_word(shape: StreamShape, blocks: int) -> None:
    """5,000 blocks: more than there are programs that go on."""
    pytest.importorskip("triton")
    words = torch.randint(-1000, 1000, (blocks * shape.loads * shape.width,), dtype=torch.int32, device="cuda")
    sums = read(words, shape)
    assert len(sums) == shape.programs(words) <= blocks
    assert int(sums.sum()) == int(words.sum())


@pytest.mark.gpu
@pytest.mark.parametrize("shape", COPIES, ids=str)
@pytest.mark.parametrize("blocks", [1, 5000])
def test_copies_miss_no_word(shape: StreamShape, blocks: int) -> None:
    pytest.importorskip("triton")
    words = torch.randint(-1000, 1000, (blocks * shape.loads * shape.width,), dtype=torch.int32, device="cuda")
    target = torch.full_like(words, 7777)
    copy(words, target, shape)
    assert torch.equal(target, words)


@pytest.mark.gpu
@pytest.mark.parametrize("width", [16, 32, 48, 64])
@pytest.mark.parametrize("shape", GATHERS, ids=str)
def test_gathers_read_their_rows(width: int, shape: GatherShape) -> None:
    pytest.importorskip("triton")
    words = torch.randint(-1000, 1000, (500, width), dtype=torch.int32, device="cuda")
    words[0] = 0  # rows beyond the last one count as this
    rows = torch.randint(1, 500, (777,), dtype=torch.int32, device="cuda")
    assert int(gather(words, rows, shape).sum()) == int(words[rows.long()].sum())
