"""The tables of docs/plugins.md, typed in by hand: what the plugins take and give, whatever the code says.

A symbol has one value wherever it stands. The ranges of sizes are left out, so that tiny models pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from recorded_types import UNKNOWN, DataType, Shape, TensorType, require

Fields = Mapping[str, int | float | str]

_INT32 = (DataType.INT32,)
_FLOAT = (DataType.FLOAT,)
# The plugin knows no T of 32 bits. The tests do: where nothing is rounded to 16 bits, small mistakes show.
_T = (DataType.HALF, DataType.BF16, DataType.FLOAT)
_S = (DataType.FLOAT, DataType.HALF)
_FP8 = (DataType.FP8,)

_REQUIRED = {"num_heads": int, "num_kv_heads": int, "head_dim": int}
_FIELDS: dict[str, dict[str, type]] = {
    "PillarPlan": _REQUIRED,
    "PillarAttention": {**_REQUIRED, "page_size": int},
}
_OPTIONAL: dict[str, Fields] = {
    "PillarPlan": {},
    "PillarAttention": {
        "kv_cache_dtype": "auto",
        "rms_norm_eps": 1e-6,
        "qk_norm": 0,
        "aliased_io": 1,
        "score_planes": "none",
        "score_normalizer": "draft",
    },
}
_WORDS = {
    "kv_cache_dtype": ("auto", "fp8"),
    "qk_norm": (0, 1),
    "aliased_io": (0, 1),
    "score_planes": ("none", "mean", "diagonal", "rows"),
    "score_normalizer": ("draft", "exact"),
}


@dataclass(frozen=True)
class Documented:
    """A tensor of a plugin. shape: numbers, symbols, and "SYMBOL+NUMBER"."""

    name: str
    dtypes: tuple[DataType, ...]
    shape: tuple[int | str, ...]


def _by_slot(*names: str) -> tuple[Documented, ...]:
    return tuple(Documented(name, _INT32, ("B",)) for name in names)


_LENGTHS = (
    Documented("row_start", _INT32, ("B+1",)),
    *_by_slot("phase", "draft_index", "score_rows", "kv_len", "recent_start", "num_staying", "num_moving"),
)
_PLAN = Documented("plan", _INT32, ("B+66688",))


def all_fields(plugin: str, given: Fields) -> Fields | None:
    """With the defaults; None where the creator would give a null pointer."""
    required, optional = _FIELDS[plugin], _OPTIONAL[plugin]
    fields = {**optional, **given}
    known = {name: type(value) for name, value in optional.items()} | required
    types = {name: type(value) for name, value in fields.items()}
    in_range = all(fields[name] in words for name, words in _WORDS.items() if name in fields)
    return fields if types == known and in_range else None


def inputs_of(plugin: str, fields: Fields) -> tuple[Documented, ...]:
    """In the plugin's order."""
    if plugin == "PillarPlan":
        return (*_LENGTHS, *_by_slot("num_lookups"))
    heads, size = int(fields["num_kv_heads"]), int(fields["head_dim"])
    norms = tuple(Documented(name, _T, (size,)) for name in ("q_norm", "k_norm")) if fields["qk_norm"] else ()
    return (
        Documented("qkv", _T, ("num_rows", (int(fields["num_heads"]) + 2 * heads) * size)),
        _kv_pool(fields),
        _draft_lse(fields),
        Documented("pillars", _INT32, ("B", heads, "max_budget")),
        *_LENGTHS,
        Documented("lookups", _INT32, ("B", "max_lookups")),
        *_by_slot("num_lookups"),
        Documented("page_table", _INT32, ("B", "max_pages")),
        Documented("rope_table", _FLOAT, ("max_positions", size)),
        _PLAN,
        *(() if fields["score_planes"] == "none" else (*_by_slot("score_index"), _scores(fields))),
        *((Documented("kv_scale", _FLOAT, (2, heads)),) if fields["kv_cache_dtype"] == "fp8" else ()),
        *norms,
    )


def outputs_of(plugin: str, fields: Fields) -> tuple[Documented, ...]:
    """In the plugin's order; those of an input's name are that input, updated in place."""
    if plugin == "PillarPlan":
        return (_PLAN,)
    output = Documented("output", _T, ("num_rows", int(fields["num_heads"]) * int(fields["head_dim"])))
    scores = () if fields["score_planes"] == "none" else (_scores(fields),)
    return (output, _kv_pool(fields), _draft_lse(fields), *scores)


def output_types(plugin: str, fields: Fields, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
    """What comes out, where these inputs may go in."""
    expected = inputs_of(plugin, fields)
    require(len(inputs) == len(expected), f"{plugin}: expected {len(expected)} inputs, found {len(inputs)}")
    sizes: dict[str, int] = {}
    dtypes: dict[tuple[DataType, ...], DataType] = {}
    for documented, found in zip(expected, inputs, strict=True):
        where = f"{plugin}: {documented.name}: {found}"
        require(found.dtype in documented.dtypes, f"{where}: wrong type")
        require(dtypes.setdefault(documented.dtypes, found.dtype) == found.dtype, f"{where}: another type of T or S")
        require(len(documented.shape) == len(found.shape), f"{where}: expected {documented.shape}")
        for extent, size in zip(documented.shape, found.shape, strict=True):
            require(_fits(extent, size, sizes), f"{where}: expected {documented.shape} with {sizes}")
    outputs = outputs_of(plugin, fields)
    return tuple(TensorType(dtypes[each.dtypes], _shape(each.shape, sizes)) for each in outputs)


def _fits(extent: int | str, size: int, sizes: dict[str, int]) -> bool:
    """Also notes what the symbol stands for."""
    if size == UNKNOWN:
        return True
    if isinstance(extent, int):
        return size == extent
    symbol, _, plus = extent.partition("+")
    least = size - int(plus or 0)
    return sizes.setdefault(symbol, least) == least


def _shape(shape: tuple[int | str, ...], sizes: Mapping[str, int]) -> Shape:
    return tuple(extent if isinstance(extent, int) else _size(extent, sizes) for extent in shape)


def _size(extent: str, sizes: Mapping[str, int]) -> int:
    symbol, _, plus = extent.partition("+")
    return sizes[symbol] + int(plus or 0) if symbol in sizes else UNKNOWN


def _kv_pool(fields: Fields) -> Documented:
    page = (int(fields["page_size"]), int(fields["head_dim"]))
    dtypes = _FP8 if fields["kv_cache_dtype"] == "fp8" else _T
    return Documented("kv_pool", dtypes, ("num_pages", 2, int(fields["num_kv_heads"]), *page))


def _draft_lse(fields: Fields) -> Documented:
    return Documented("draft_lse", _FLOAT, ("B", "max_draft_len", int(fields["num_heads"])))


def _scores(fields: Fields) -> Documented:
    planes = {"mean": 1, "diagonal": 2, "rows": "planes"}[str(fields["score_planes"])]
    return Documented("scores", _S, ("max_scored", planes, int(fields["num_kv_heads"]), "max_positions"))
