"""What was measured as rows of a table: shares of ceilings, ratios to peers and to other rows, targets reached."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kernel_cases import Case, PeerKind, Relation, Target, peer_bytes, prefill_flops
from kernel_ceilings import Ceilings


@dataclass(frozen=True)
class PeerTiming:
    """Of one peer, per layer; or why there is none."""

    kind: PeerKind
    ms: float | None
    remark: str | None = None  # an error, or how else than in a graph it was timed


@dataclass(frozen=True)
class Measured:
    """Of one case, per layer."""

    case: Case
    ms: float
    peers: tuple[PeerTiming, ...] = ()
    gather_ms: float | None = None  # the fastest gather of the rows that its drafts read
    fp8_error: float | None = None

    @property
    def gigabytes_per_s(self) -> float:
        """0 where nothing is counted."""
        return self.case.bytes / self.ms / 1e6

    @property
    def best_peer(self) -> PeerTiming | None:
        """The fastest one."""
        timed = [(each.ms, index) for index, each in enumerate(self.peers) if each.ms is not None]
        return self.peers[min(timed)[1]] if timed else None


@dataclass(frozen=True)
class Row:
    """Of the table, and of the JSON."""

    group: str
    geometry: str
    case: str
    ms: float
    bytes: int
    gigabytes_per_s: float
    teraflops: float | None  # of a prefill
    ceiling: str
    of_ceiling: float
    peers: tuple[PeerTiming, ...]
    best_peer: PeerKind | None
    peer_ms: float | None
    ratio: float | None  # of bytes per second to the best peer's; of times, where both read the same
    relation: str | None
    relative: float | None
    fp8_error: float | None
    target: str
    reached: bool | None  # None without a target, and where its figure is not there


MeasuredSets = Sequence[Sequence[Measured]]


def table(group: str, sets: MeasuredSets, ceilings: Ceilings) -> list[Row]:
    """All rows of a group, in order."""
    everything = [each for members in sets for each in members]
    return [_row(group, each, [*members, *everything], ceilings) for members in sets for each in members]


def _row(group: str, measured: Measured, others: Sequence[Measured], ceilings: Ceilings) -> Row:
    case, workload, peer = measured.case, measured.case.workload, measured.best_peer
    speed, flops = measured.gigabytes_per_s, prefill_flops(workload)
    gather = measured.gather_ms
    best = ceilings.read if gather is None else case.bytes / gather / 1e6
    ratio, relative = _ratio(measured), _relative(measured, others)
    return Row(
        group=group,
        geometry=workload.geometry.name,
        case=case.name,
        ms=measured.ms,
        bytes=case.bytes,
        gigabytes_per_s=speed,
        teraflops=flops / measured.ms / 1e9 if flops else None,
        ceiling=f"{'read' if gather is None else 'gather'} {best:.0f}",
        of_ceiling=speed / best,
        peers=measured.peers,
        best_peer=None if peer is None else peer.kind,
        peer_ms=None if peer is None else peer.ms,
        ratio=ratio,
        relation=None if case.relation is None else f"{case.relation.kind} {' and '.join(case.relation.to)}",
        relative=relative,
        fp8_error=measured.fp8_error,
        target=" and ".join(target.text for target in case.targets),
        reached=_reached(case.targets, speed, ratio, relative),
    )


def _ratio(measured: Measured) -> float | None:
    peer = measured.best_peer
    if peer is None or peer.ms is None:
        return None
    return measured.gigabytes_per_s / (peer_bytes(peer.kind, measured.case.workload) / peer.ms / 1e6)


def _relative(measured: Measured, others: Sequence[Measured]) -> float | None:
    relation = measured.case.relation
    if relation is None:
        return None
    found = [next((each for each in others if each.case.name == name), None) for name in relation.to]
    present = [each for each in found if each is not None]
    return _related(measured, relation, present) if len(present) == len(found) else None


def _related(measured: Measured, relation: Relation, to: Sequence[Measured]) -> float:
    if relation.kind == "of the best of":
        return measured.gigabytes_per_s / max(each.gigabytes_per_s for each in to)
    if relation.kind == "of the ideal of":
        ideal = sum(weight * each.ms for weight, each in zip(relation.weights, to, strict=True))
        return ideal / measured.ms
    if relation.kind == "times as fast as":
        return to[0].ms / measured.ms
    share = measured.ms / to[0].ms
    return share - 1 if relation.kind == "overhead over" else share


def _reached(
    targets: Sequence[Target], gigabytes_per_s: float, ratio: float | None, relative: float | None
) -> bool | None:
    """None if a figure is missing, unless another is there and fails."""
    figures = {"gigabytes_per_s": gigabytes_per_s, "ratio": ratio, "relative": relative}
    values = [(target, figures[target.figure]) for target in targets]
    held = [target.holds(value) for target, value in values if value is not None]
    if not all(held):
        return False
    return True if held and len(held) == len(targets) else None


def line(row: Row) -> str:
    """Of the table."""
    speed = f"{row.gigabytes_per_s:5.0f} GB/s {row.of_ceiling:4.2f} of {row.ceiling:11}" if row.bytes else " " * 31
    parts = [f"{row.geometry:33} {row.case:32} {row.ms:8.4f} ms {speed}"]
    if row.teraflops is not None:
        parts.append(f"{row.teraflops:.0f} TFLOP/s")
    if row.ratio is not None:
        others = [f"{each.kind} {each.ms:.4f}" for each in row.peers if each.ms and each.kind != row.best_peer]
        beside = f" ({', '.join(others)})" if others else ""
        parts.append(f"{row.ratio:.2f}x of {row.best_peer} {row.peer_ms:.4f} ms{beside}")
    if row.relative is not None:
        parts.append(f"{row.relative:.3f} {row.relation if len(str(row.relation)) < 75 else 'of the best'}")
    if row.fp8_error is not None:
        parts.append(f"error {row.fp8_error:.4f}")
    if row.target:
        parts.append(f"[{row.target}: {_verdict(row.reached)}]")
    return "  ".join(parts)


def remarks(rows: Sequence[Row]) -> list[str]:
    """What peers had to say."""
    return [
        f"{row.geometry}, {row.case}: {peer.kind}: {peer.remark}"
        for row in rows
        for peer in row.peers
        if peer.remark is not None
    ]


def spreads(sets: MeasuredSets) -> list[str]:
    """The slowest and the fastest of cases that are measured by the best of themselves; by bytes as the table counts
    them, and by all that attention moves: short contexts have more rows for the same keys.
    """
    everything = [each for members in sets for each in members]
    families = {
        each.case.relation.to: None
        for each in everything
        if each.case.relation is not None and each.case.name in each.case.relation.to
    }
    lines = []
    for names in families:
        members = [each for each in everything if each.case.name in names]
        bare = _range([each.gigabytes_per_s for each in members])
        full = _range([each.case.all_bytes / each.ms / 1e6 for each in members])
        lines.append(f"{names[0]} to {names[-1]}: {bare}; with rows and lists {full}")
    return lines


def _range(speeds: Sequence[float]) -> str:
    low, high = min(speeds), max(speeds)
    return f"{low:.0f} to {high:.0f} GB/s, {low / high:.3f}"


def _verdict(reached: bool | None) -> str:
    return "not known" if reached is None else ("yes" if reached else "no")
