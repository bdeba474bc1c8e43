"""The tensors PillarAttention reads, by the names that the plugin, the network and the runtime share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

TensorT = TypeVar("TensorT")

# What the scored rows of a block leave in `scores`, all of it averaged over the query heads of the group:
# "none": nothing, and score_rows are 0.
# "mean": one plane, the mean over the rows.
# "diagonal": that plane, and a second one: at p the mean over rows i of what row i gives to position p + i. Attention
#     that moves along with the rows stands out there, as attention that stays does in the first.
# "rows": a plane for each row.
ScorePlanes = Literal["none", "mean", "diagonal", "rows"]

# What turns a scored row's logits into scores:
# "exact": its own log-sum-exp, so that scores are its attention probabilities.
# "draft": the log-sum-exp that the draft of the same row left in draft_lse, over the tokens that the draft read; scores
#     are cut off at 1. The last row has no draft and borrows its neighbour's: it must count, it alone sees the newest
#     token. A kernel then needs no second pass over the keys to score them. Rows without drafts are scored exactly:
#     those of prompts, and verifications of a single row.
ScoreNormalizer = Literal["draft", "exact"]


def num_score_planes(kind: ScorePlanes, max_score_rows: int) -> int:
    """Planes of `scores` for blocks of at most max_score_rows scored rows."""
    return {"none": 0, "mean": 1, "diagonal": 2, "rows": max_score_rows}[kind]


@dataclass(frozen=True)
class PillarAttentionParams:
    """Constants of the op. head_dim is even; num_heads is a multiple of num_kv_heads."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    page_size: int
    rms_norm_eps: float = 1e-6  # of the QK-norm, where there is one
    score_planes: ScorePlanes = "mean"
    score_normalizer: ScoreNormalizer = "draft"


@dataclass(frozen=True)
class QkNorm(Generic[TensorT]):
    """Weights of the RMSNorm over every query and key head before RoPE (Qwen3). Each [head_dim]."""

    q_norm: TensorT
    k_norm: TensorT


@dataclass(frozen=True)
class StepInputs(Generic[TensorT]):
    """What is the same for every layer of one step. All int32 but rope_table; B = max_batch_size, indexed by slot.

    A draft row with draft_index j reads a set of positions: the pillars, the moving pillars plus j, the lookups, all of
    those only where they lie before recent_start, and everything from recent_start to its own position.

    The host sends row_start, phase, draft_index, score_rows and score_index. The rest is device state: when the host
    plans a step, it does not know these values yet.
    """

    row_start: TensorT  # [B + 1] CSR: slot s owns rows row_start[s] to row_start[s + 1]
    phase: TensorT  # [B] plugins.phase.Phase
    draft_index: TensorT  # [B] first row's position minus kv_len: the draft number, 0 in other phases
    score_rows: TensorT  # [B] how many of the slot's last rows are scored; 0 for none, and in DRAFT
    score_index: TensorT | None  # [B] where in `scores` the slot's scores go; None without scores
    kv_len: TensorT  # [B] verified tokens in the cache
    recent_start: TensorT  # [B] first token that every draft row reads
    num_staying: TensorT  # [B] pillars per layer and KV head that stay where they are
    num_moving: TensorT  # [B] pillars that move along with the drafts; num_staying + num_moving <= max_budget
    lookups: TensorT  # [B, max_lookups] more positions, for all layers and heads of a draft row
    num_lookups: TensorT  # [B]
    page_table: TensorT  # [B, max_pages] page of each page_size tokens of the slot
    rope_table: TensorT  # [max_positions, head_dim] cosines of head_dim / 2 frequencies, then their sines; fp32 or fp64


@dataclass(frozen=True)
class LayerInputs(Generic[TensorT]):
    """What one layer owns. The op updates kv_pool, draft_lse and scores in place (aliased in the TensorRT plugin)."""

    # [num_pages, 2, num_kv_heads, page_size, head_dim] keys, then values; of the model's type or of float8_e4m3fn
    kv_pool: TensorT
    draft_lse: TensorT  # [B, max_draft_len, num_heads] of draft row j at j: log-sum-exp of its scaled logits
    pillars: TensorT  # [B, num_kv_heads, max_budget] int32 logical positions: num_staying that stay, then num_moving
    # [max_scored, planes, num_kv_heads, max_positions], see ScorePlanes and ScoreNormalizer; None where there are none
    scores: TensorT | None
    # [2, num_kv_heads] fp32, of keys and of values; None for a pool of the model's type. A pool of float8_e4m3fn holds
    # what came, over its scale: divided in fp32, cut off at +-448 and rounded half to even. Every row reads that times
    # the scale, its own too.
    kv_scale: TensorT | None = None


@dataclass(frozen=True)
class AttentionInputs(Generic[TensorT]):
    """Everything one layer's attention reads in one step."""

    qkv: TensorT  # [num_rows, (num_heads + 2 * num_kv_heads) * head_dim], before RoPE
    qk_norm: QkNorm[TensorT] | None
    layer: LayerInputs[TensorT]
    step: StepInputs[TensorT]
    plan: TensorT  # what PillarPlan made of the step: int32, of the lowering's own meaning
