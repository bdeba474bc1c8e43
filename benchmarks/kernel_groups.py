"""The cases of the kernel benchmark and what each must reach."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from kernel_cases import (
    DRAFT_LEN,
    Case,
    DraftList,
    Geometry,
    Group,
    PeerKind,
    Relation,
    Target,
    Workload,
    pillar_list,
    share_of_slots,
    shipped_list,
)
from sparsespec.plugins.phase import Phase

QWEN3_8B = Geometry(batch=96, context=8192, num_heads=32, num_kv_heads=8, head_dim=128)
SMOLLM2 = Geometry(batch=512, context=4096, num_heads=9, num_kv_heads=3, head_dim=64, num_layers=30)
MODELS = (QWEN3_8B, SMOLLM2)

BATCHES, LONG_CONTEXTS = (1, 4, 16), (32768, 131072)
CHUNK, PASTS = 2048, (0, 8192, 32768)
GROWTH = tuple(2048 * 2**power for power in range(7))
GROUP_SIZES, HEAD_DIMS = (4, 5, 6, 7, 8), (64, 96, 128)

AS_FAST = Target("ratio", 1.0)
NO_CLIFF = Target("relative", 0.8)
FULL: tuple[PeerKind, ...] = ("fa2", "fa3")
DECODE: tuple[PeerKind, ...] = ("decode", "decode, CUDA cores")
SPARSE: tuple[PeerKind, ...] = ("sparse", "sparse, CUDA cores")


def plain(geometry: Geometry) -> Workload:
    """Every slot has one row that reads everything."""
    return Workload(geometry, (Phase.VERIFY,) * geometry.batch, num_rows=1)


def verify(geometry: Geometry, scored: bool = False) -> Workload:
    """Every slot verifies a block."""
    return Workload(geometry, (Phase.VERIFY,) * geometry.batch, scored=scored)


def drafts(geometry: Geometry, draft: DraftList | None = None) -> Workload:
    """Every slot drafts; as the paper does, if not told otherwise."""
    chosen = pillar_list(geometry.context) if draft is None else draft
    return Workload(geometry, (Phase.DRAFT,) * geometry.batch, draft=chosen)


def some_verify(geometry: Geometry, scored: bool) -> Workload:
    """One slot in nine verifies, the others have no rows."""
    return Workload(geometry, share_of_slots(geometry.batch, Phase.IDLE), scored=scored)


def mixed(geometry: Geometry) -> Workload:
    """One slot in nine verifies with scores, the others draft."""
    phases = share_of_slots(geometry.batch, Phase.DRAFT)
    return Workload(geometry, phases, draft=pillar_list(geometry.context), scored=True)


def prefill(past: int) -> Workload:
    """One request's chunk of a prompt."""
    geometry = Geometry(1, past, num_heads=32, num_kv_heads=8, head_dim=128, room=CHUNK + 2 * DRAFT_LEN)
    return Workload(geometry, (Phase.PREFILL,), num_rows=CHUNK)


def in_fp8(workload: Workload) -> Workload:
    """The same with an FP8 KV cache."""
    return replace(workload, kv_dtype="fp8")


def groups() -> tuple[Group, ...]:
    """All of them, by their names on the command line."""
    return (
        Group("decode", tuple((_decode_case(model),) for model in MODELS)),
        Group("draft", (_draft_set(QWEN3_8B, 3000, 2.2), _draft_set(SMOLLM2, 2400, 3.0))),
        Group("verify", ((_verify_case(QWEN3_8B, 3850),), (_verify_case(SMOLLM2, 3300),))),
        Group("scores", tuple(_scores_set(model) for model in MODELS)),
        Group("small", tuple(_small_set(batch, context) for batch in BATCHES for context in LONG_CONTEXTS)),
        Group("prefill", tuple((_prefill_case(past),) for past in PASTS)),
        Group("growth", tuple(_growth_set(context) for context in GROWTH)),
        Group("shapes", tuple(_shape_sets())),
        Group("fp8", tuple(_fp8_set(model) for model in MODELS)),
        Group("mix", tuple(_mix_set(model) for model in MODELS)),
        Group("cached", tuple(_cached_set(model) for model in MODELS)),
    )


def _decode_case(geometry: Geometry) -> Case:
    return Case("plain decode", plain(geometry), peers=DECODE, targets=(AS_FAST,))


def _draft_set(geometry: Geometry, least: float, ratio: float) -> tuple[Case, ...]:
    targets = (Target("gigabytes_per_s", least), Target("ratio", ratio))
    return (
        Case("draft", drafts(geometry), peers=SPARSE, targets=targets),
        Case("draft as shipped", drafts(geometry, shipped_list(geometry.context)), peers=SPARSE),
    )


def _verify_case(geometry: Geometry, least: float) -> Case:
    return Case("verify", verify(geometry), peers=FULL, targets=(Target("gigabytes_per_s", least),))


def _scores_set(geometry: Geometry) -> tuple[Case, ...]:
    """Measured against verifications without scores, which take less: the stricter share for PillarSelect."""
    cheap, rare = (Target("relative", limit, at_most=True) for limit in (0.06, 0.05))
    lists = shipped_list(geometry.context)
    cases: list[Case] = []
    for suffix, bare, scored in (
        ("", verify(geometry), verify(geometry, scored=True)),
        (", 1/9 of slots", some_verify(geometry, scored=False), some_verify(geometry, scored=True)),
    ):
        name = f"verify{suffix}"
        over, share = Relation("overhead over", (name,)), Relation("share of", (name,))
        cases += [
            Case(name, bare),
            Case(f"verify with scores{suffix}", scored, relation=over, targets=(cheap,)),
            Case(f"select{suffix}", replace(scored, draft=lists), "select", relation=share, targets=(rare,)),
        ]
    return tuple(cases)


def _mix_set(geometry: Geometry) -> tuple[Case, ...]:
    mix = mixed(geometry)
    share = mix.count(Phase.VERIFY) / geometry.batch
    ideal = Relation("of the ideal of", ("verify with scores", "draft"), (share, 1 - share))
    return (
        Case("verify with scores", verify(geometry, scored=True)),
        Case("draft", drafts(geometry)),
        Case("unified mix", mix, peers=("BatchAttention",), relation=ideal, targets=(Target("relative", 0.95),)),
        Case("plan of the mix", mix, "plan"),
    )


def _cached_set(geometry: Geometry) -> tuple[Case, ...]:
    """What the multiprocessors do where the memory does not bound them."""
    workloads = (
        ("plain decode", plain(geometry)),
        ("verify", verify(geometry)),
        ("verify with scores", verify(geometry, scored=True)),
    )
    return tuple(Case(f"{name}, cached", replace(workload, cached=True)) for name, workload in workloads)


def _small_set(batch: int, context: int) -> tuple[Case, ...]:
    geometry = replace(QWEN3_8B, batch=batch, context=context)
    return (
        Case("plain decode", plain(geometry), peers=("decode",), targets=(AS_FAST,)),
        Case("verify", verify(geometry), peers=("fa2",), targets=(AS_FAST,)),
    )


def _prefill_case(past: int) -> Case:
    return Case(f"prefill {CHUNK} on {past}", prefill(past), peers=FULL, targets=(Target("ratio", 0.8),))


def _growth_set(context: int) -> tuple[Case, ...]:
    """The same KV cache in fewer and longer requests."""
    geometry = replace(QWEN3_8B, batch=QWEN3_8B.batch * QWEN3_8B.context // context, context=context)
    flat = (Target("relative", 0.9),)
    return (
        Case(f"verify at {context}", verify(geometry), relation=_fastest("verify at {}", GROWTH), targets=flat),
        Case(f"draft at {context}", drafts(geometry), relation=_fastest("draft at {}", GROWTH), targets=flat),
    )


def _shape_sets() -> Iterable[tuple[Case, ...]]:
    """Groups of query heads and head sizes, each beside its neighbours; group 4 is head_dim 128."""
    for size in GROUP_SIZES:
        beside = tuple(f"{{}}, group {other}" for other in (size - 1, size + 1) if other in GROUP_SIZES)
        wide = replace(QWEN3_8B, num_heads=size * QWEN3_8B.num_kv_heads)
        yield _shape_set(wide, f"{{}}, group {size}", beside if size > GROUP_SIZES[0] else ())
    for head_dim in HEAD_DIMS[:-1]:
        beside = ("{}, head_dim 64", "{}, group 4") if head_dim == 96 else ()
        yield _shape_set(replace(QWEN3_8B, head_dim=head_dim), f"{{}}, head_dim {head_dim}", beside)


def _shape_set(geometry: Geometry, name: str, beside: tuple[str, ...]) -> tuple[Case, ...]:
    """name, beside: what stands for {} is what the rows do. Without neighbours it is one of somebody else's."""
    workloads = (
        ("verify", verify(geometry)),
        ("verify with scores", verify(geometry, scored=True)),
        ("draft", drafts(geometry)),
    )
    return tuple(
        Case(
            name.format(what),
            workload,
            relation=Relation("of the best of", tuple(other.format(what) for other in beside)) if beside else None,
            targets=(NO_CLIFF,) if beside else (),
        )
        for what, workload in workloads
    )


def _fastest(name: str, contexts: Iterable[int]) -> Relation:
    return Relation("of the best of", tuple(name.format(context) for context in contexts))


def _fp8_set(geometry: Geometry) -> tuple[Case, ...]:
    pairs = (("draft", drafts(geometry)), ("verify", verify(geometry)))
    return tuple(
        case
        for name, workload in pairs
        for case in (
            Case(f"{name}, bf16", workload),
            Case(
                f"{name}, FP8",
                in_fp8(workload),
                relation=Relation("times as fast as", (f"{name}, bf16",)),
                targets=(Target("relative", 1.7),),
            ),
        )
    )
