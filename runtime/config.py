"""Run-time choices within what the engine was built for; also the flags of run.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sparsespec.builder.build_config import MAX_LOOKUPS, BuildConfig
from sparsespec.builder.config_io import check_range, check_types, option
from sparsespec.builder.errors import InputError
from sparsespec.builder.trt.config import BackendName

DrafterName = Literal["pillar", "window", "ngram", "oracle", "none"]
RankingName = Literal["mean", "accepted", "average"]
MovingName = Literal["diagonal", "last"]
CouplingName = Literal["rejection", "gumbel"]
NormalizerName = Literal["draft", "exact"]
AttentionName = Literal["auto", "plugins", "reference"]
GraphsName = Literal["auto", "on", "off"]
Policy = Literal["unified", "lockstep"]
PolicyName = Literal["auto", "unified", "lockstep"]
MAX_RESULT_LAG = 64
_MOST_KV_TOKENS = 2**40
_MOST_BYTES = 2**60
MAX_NGRAM = 16


@dataclass(frozen=True)
class SpeculationConfig:
    """How tokens are drafted; verification makes the output independent of every choice here."""

    drafter: DrafterName = option(
        "pillar",
        "who drafts: sparse attention, a sliding window, the text itself, pillars chosen anew by every draft row (for "
        "studies: slow), or nobody",
    )
    k: int = option(8, "tokens drafted before each verification")
    ratio: float = option(0.05, "share of its own KV cache that a draft step reads")
    min_budget: int = option(192, "fewest tokens per KV head that a draft step reads")
    recent_share: float = option(0.25, "share of the budget kept for the newest verified tokens; 0 is the paper's rule")
    moving_share: float = option(0.25, "share of the budget for pillars that move on with every draft; 0: the paper's")
    max_lookups: int = option(16, "tokens of the budget after earlier occurrences of the newest one; 0: the paper's")
    ranking: RankingName = option(
        "mean", "pillars go by the mean over all verified rows, over those accepted, or a moving average"
    )
    decay: float = option(0.6, "weight of the past in ranking average")
    moving_from: MovingName = option(
        "diagonal", "what moves: where all verified rows moved along, or where the last one looked"
    )
    score_normalizer: NormalizerName = option(
        "draft", "pillars go by scores over what each row's draft read, which a GPU gets cheaply, or over everything"
    )
    coupling: CouplingName = option(
        "rejection",
        "sampled drafts stand by rejection sampling, or where draft and model draw the same token with the same "
        "Gumbel noise: then a seed gives the same answer with and without drafts",
    )
    num_sinks: int = option(4, "first tokens that the window drafter keeps")
    adaptive: bool = option(
        False, "0 to k drafts in each cycle, as many as a cost model measured at the start says are fastest"
    )
    max_drafting_kv_share: float = option(
        1.0, "share of the KV pages in use beyond which adaptive drafts nothing; 1: it always may"
    )
    max_ngram: int = option(4, "most newest tokens that the ngram drafter looks for")
    min_ngram: int = option(2, "fewest newest tokens that the ngram drafter looks for")

    def __post_init__(self) -> None:
        check_types(self)
        _require(self.k >= 1, "k", self.k, "at least 1 (drafter none decodes plainly)")
        _require(0 < self.ratio <= 1, "ratio", self.ratio, "in (0, 1]")
        check_range("min_budget", self.min_budget, least=1)
        _require(0 <= self.recent_share <= 1, "recent_share", self.recent_share, "in [0, 1]")
        _require(0 <= self.moving_share <= 1, "moving_share", self.moving_share, "in [0, 1]")
        _require(0 <= self.max_lookups <= MAX_LOOKUPS, "max_lookups", self.max_lookups, f"in 0..{MAX_LOOKUPS}")
        _require(0 <= self.decay < 1, "decay", self.decay, "in [0, 1)")
        check_range("num_sinks", self.num_sinks, least=0)
        _require(1 <= self.max_ngram <= MAX_NGRAM, "max_ngram", self.max_ngram, f"in 1..{MAX_NGRAM}")
        limit = f"in 1..max_ngram {self.max_ngram}"
        _require(1 <= self.min_ngram <= self.max_ngram, "min_ngram", self.min_ngram, limit)
        share = self.max_drafting_kv_share
        _require(0 <= share <= 1, "max_drafting_kv_share", share, "in [0, 1]")
        drafts = not self.adaptive or self.num_draft_steps > 0
        _require(drafts, "drafter", self.drafter, "one that drafts with the model, where adaptive is on")

    @property
    def draft_len(self) -> int:
        """Drafts per cycle: k, or 0 without a drafter."""
        return 0 if self.drafter == "none" else self.k

    @property
    def num_draft_steps(self) -> int:
        """Steps of drafting per cycle: k, or 0 where drafts are not the model's."""
        return 0 if self.drafter == "ngram" else self.draft_len

    def budget(self, context: int) -> int:
        """Tokens per KV head that a draft step reads after `context` verified ones."""
        return max(self.min_budget, int(self.ratio * context))

    def check_engine(self, build: BuildConfig) -> None:
        """Raise InputError where the engine was built for less; plain decoding needs nothing of it."""
        if self.draft_len == 0:
            return
        _require(
            self.k <= build.max_draft_len, "k", self.k, f"at most the engine's max_draft_len {build.max_draft_len}"
        )
        if self.num_draft_steps == 0:
            return
        budget = self.budget(build.max_seq_len)
        limit = f"such that max(min_budget, ratio * max_seq_len) is at most the engine's max_budget {build.max_budget}"
        name = "min_budget" if budget == self.min_budget else "ratio"
        _require(budget <= build.max_budget, name, getattr(self, name), limit)


@dataclass(frozen=True)
class RuntimeConfig:
    """How an engine is run."""

    device: str = option("auto", "auto, cpu, cuda or cuda:N; auto takes cuda where there is one")
    backend: BackendName = option(
        "auto", "tensorrt or torch; auto takes TensorRT where the engine has TensorRT's engines and it can run them"
    )
    plugin_library: str | None = option(None, "libsparsespec_plugins.so; the one beside the package when not given")
    attention: AttentionName = option(
        "auto", "CUDA kernels (plugins) or plain torch (reference); auto takes plugins for 16-bit engines on a GPU"
    )
    cuda_graphs: GraphsName = option(
        "auto", "torch's steps of fixed shapes, each in a CUDA graph: on, off, or auto: where the CUDA kernels run"
    )
    max_batch_size: int | None = option(None, "requests that run at once; the engine's maximum when not given")
    max_tokens_in_paged_kv_cache: int | None = option(None, "KV cache size; room for a full batch when not given")
    kv_cache_host_memory_bytes: int = option(
        0, "host memory for KV pages of whole requests that have to wait where pages run short; 0: none has to"
    )
    chunk_size: int = option(512, "most prompt tokens prefilled in one step")
    policy: PolicyName = option(
        "auto",
        "unified staggers verifications over the steps; lockstep drafts and verifies together; auto is unified, and "
        "with adaptive whichever is faster at the time",
    )
    result_lag: int = option(1, "steps that are started before the results of a step are read")

    def __post_init__(self) -> None:
        check_types(self)
        if self.max_batch_size is not None:
            check_range("max_batch_size", self.max_batch_size, least=1)
        tokens = self.max_tokens_in_paged_kv_cache
        if tokens is not None:
            check_range("max_tokens_in_paged_kv_cache", tokens, least=1, most=_MOST_KV_TOKENS)
        check_range("kv_cache_host_memory_bytes", self.kv_cache_host_memory_bytes, least=0, most=_MOST_BYTES)
        _require(0 <= self.result_lag <= MAX_RESULT_LAG, "result_lag", self.result_lag, f"in 0..{MAX_RESULT_LAG}")
        check_range("chunk_size", self.chunk_size, least=1)

    def check_engine(self, build: BuildConfig, speculation: SpeculationConfig) -> None:
        """Raise InputError where the engine was built for less."""
        size = self.max_batch_size
        limit = f"at most the engine's max_batch_size {build.max_batch_size}"
        _require(size is None or size <= build.max_batch_size, "max_batch_size", size, limit)
        rows = speculation.draft_len + 1
        _require(self.chunk_size >= rows, "chunk_size", self.chunk_size, f"at least k + 1 = {rows}")

    def num_host_pages(self, page_bytes: int) -> int:
        """KV pages of so many bytes that host memory is given for. Raises InputError for less than one page."""
        size = self.kv_cache_host_memory_bytes
        limit = f"0, or at least the {page_bytes} bytes of one page"
        _require(size == 0 or size >= page_bytes, "kv_cache_host_memory_bytes", size, limit)
        return size // page_bytes


def _require(condition: bool, name: str, value: object, expected: str) -> None:
    if not condition:
        raise InputError(f"{name} must be {expected}, found {value!r}")
