"""The sums of the kernel benchmark's table, worked by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kernel_cases import Case, Geometry, Relation, Target, row_bytes
from kernel_ceilings import Ceilings
from kernel_groups import drafts, in_fp8, prefill, verify
from kernel_table import Measured, PeerTiming, Row, line, remarks, spreads, table

SMALL = Geometry(batch=10, context=1000, num_heads=4, num_kv_heads=2, head_dim=64, num_layers=3)
CEILINGS = Ceilings(read=4000.0, copy=3800.0)
VERIFY = Case("verify", verify(SMALL))
VERIFY_BYTES = 10 * 2 * 1009 * 256


def rows_of(*measured: Measured) -> list[Row]:
    return table("group", [measured], CEILINGS)


def test_speed_is_bytes_over_time_and_a_share_of_the_read() -> None:
    (row,) = rows_of(Measured(VERIFY, 0.002))
    assert row.bytes == VERIFY_BYTES
    assert row.gigabytes_per_s == pytest.approx(VERIFY_BYTES / 0.002 / 1e6)
    assert row.of_ceiling == pytest.approx(row.gigabytes_per_s / 4000)
    assert (row.ceiling, row.ratio, row.relative, row.reached) == ("read 4000", None, None, None)
    assert "not known" not in line(row)


def test_the_ceiling_of_drafts_is_their_gather() -> None:
    (row,) = rows_of(Measured(Case("draft", drafts(SMALL)), 0.004, gather_ms=0.003))
    assert row.ceiling.startswith("gather ")
    assert row.of_ceiling == pytest.approx(0.75)


def test_the_best_peer_counts() -> None:
    case = replace(VERIFY, peers=("fa2", "fa3"), targets=(Target("ratio", 1.5),))
    peers = (PeerTiming("fa2", 0.006), PeerTiming("fa3", 0.003), PeerTiming("decode", None, "no such kernel"))
    (row,) = rows_of(Measured(case, 0.002, peers))
    assert (row.best_peer, row.peer_ms) == ("fa3", 0.003)
    assert row.ratio == pytest.approx(1.5)
    assert row.reached is (row.ratio >= 1.5)
    assert remarks([row]) == [f"{SMALL.name}, verify: decode: no such kernel"]
    assert "1.50x of fa3 0.0030 ms (fa2 0.0060)" in line(row)


def test_a_peer_that_reads_more_is_compared_by_bytes_per_second() -> None:
    """BatchAttention reads everything in all slots, where ours drafts."""
    case = Case("mix", drafts(SMALL), peers=("BatchAttention",))
    (row,) = rows_of(Measured(case, 0.001, (PeerTiming("BatchAttention", 0.004),)))
    assert row.ratio == pytest.approx(4 * row.bytes / VERIFY_BYTES)


def test_relations() -> None:
    other = Case("draft", drafts(SMALL))

    def relative(relation: Relation, ms: float = 0.003) -> float | None:
        first, second = Measured(VERIFY, 0.002), Measured(other, 0.001)
        return rows_of(first, second, Measured(replace(VERIFY, name="it", relation=relation), ms))[-1].relative

    assert relative(Relation("overhead over", ("verify",))) == pytest.approx(0.5)
    assert relative(Relation("share of", ("verify",))) == pytest.approx(1.5)
    assert relative(Relation("times as fast as", ("verify",))) == pytest.approx(2 / 3)
    assert relative(Relation("of the best of", ("verify", "draft"))) == pytest.approx(2 / 3)
    assert relative(Relation("of the best of", ("it", "draft"))) == pytest.approx(1)
    ideal = Relation("of the ideal of", ("verify", "draft"), (0.25, 0.75))
    assert relative(ideal) == pytest.approx((0.25 * 0.002 + 0.75 * 0.001) / 0.003)
    assert relative(Relation("share of", ("nobody",))) is None


def test_names_mean_the_own_set_first_and_then_the_group() -> None:
    def measured(ms: float) -> tuple[Measured, Measured]:
        scored = replace(VERIFY, name="scored", relation=Relation("overhead over", ("verify",)))
        return Measured(VERIFY, ms), Measured(scored, 0.006)

    rows = table("group", [measured(0.002), measured(0.004)], CEILINGS)
    assert [rows[1].relative, rows[3].relative] == pytest.approx([2.0, 0.5])
    rows = table("group", [measured(0.002)[1:], measured(0.004)], CEILINGS)
    assert rows[0].relative == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("ms", "peer_ms", "expected"),
    [(0.002, 0.005, True), (0.002, 0.003, False), (0.004, 0.010, False), (0.002, None, None), (0.004, None, False)],
)
def test_all_targets_must_be_reached(ms: float, peer_ms: float | None, expected: bool | None) -> None:
    """2 ns are 2583 GB/s, 4 are half of it. A target without its figure leaves it open, unless another one fails."""
    targets = (Target("gigabytes_per_s", 2000), Target("ratio", 2))
    case = replace(VERIFY, peers=("fa2",), targets=targets)
    (row,) = rows_of(Measured(case, ms, (PeerTiming("fa2", peer_ms),)))
    assert row.reached is expected
    assert row.target == ">= 2000 GB/s and >= 2x FlashInfer"
    assert line(row).endswith(f": {'not known' if expected is None else 'yes' if expected else 'no'}]")


def test_the_slowest_and_the_fastest_of_a_family() -> None:
    names = ("at 1", "at 2")
    family = [Case(name, verify(SMALL), relation=Relation("of the best of", names)) for name in names]
    beside = Case("it", verify(SMALL), relation=Relation("of the best of", ("at 1",)))
    sets = [[Measured(family[0], 0.004)], [Measured(family[1], 0.002)], [Measured(beside, 0.001)]]
    fast = VERIFY_BYTES / 0.002 / 1e6
    full = (VERIFY_BYTES + row_bytes(verify(SMALL))) / 0.002 / 1e6
    bare, with_rows = (f"{most / 2:.0f} to {most:.0f} GB/s, 0.500" for most in (fast, full))
    assert spreads(sets) == [f"at 1 to at 2: {bare}; with rows and lists {with_rows}"]


def test_what_else_a_line_tells() -> None:
    chunk = Case("prefill", prefill(0))
    (row,) = rows_of(Measured(chunk, 1.0))
    assert row.teraflops == pytest.approx(4 * 32 * 128 * (2048 * 2049 / 2) / 1e9)
    assert "34 TFLOP/s" in line(row)
    (row,) = rows_of(Measured(replace(VERIFY, workload=in_fp8(verify(SMALL))), 0.002, fp8_error=0.0312))
    assert row.bytes == VERIFY_BYTES // 2
    assert "error 0.0312" in line(row)
    (row,) = rows_of(Measured(replace(VERIFY, op="plan"), 0.002))
    assert "GB/s" not in line(row)
