"""What an engine was built for; the `build` section of config.json and the flags of build_engine.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sparsespec.builder.config_io import check_range, option, shown
from sparsespec.builder.errors import InputError

DType = Literal["auto", "float64", "float32", "float16", "bfloat16"]
KvCacheDType = Literal["auto", "fp8"]
ELEMENT_SIZE = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}

MAX_PAGE_SIZE = 1024
# Bytes: TensorRT binds nothing else. Scores have 2 of them or more, pillars 4.
ADDRESS_ALIGNMENT = 256
# Tokens that one draft row may look up beside its pillars.
MAX_LOOKUPS = 256


@dataclass(frozen=True)
class BuildConfig:
    """Maxima that an engine serves; the runtime may use less, never more."""

    dtype: DType = option("auto", "type of weights, activations and KV cache; auto: as the checkpoint has it")
    kv_cache_dtype: KvCacheDType = option(
        "auto", "type of the KV cache; auto: dtype; fp8: float8_e4m3fn, by the checkpoint's scales where it has them"
    )
    tp_size: int = option(1, "tensor-parallel ranks; only 1 is supported by the torch executor")
    max_batch_size: int = option(8, "most requests that run at once")
    max_seq_len: int = option(8192, "longest request, prompt and answer together, in tokens")
    max_num_tokens: int = option(2048, "most rows in one step, over all requests")
    max_draft_len: int = option(16, "most tokens drafted before a verification (k)")
    max_budget: int = option(2048, "most tokens per KV head that a draft step may read of its budget")
    page_size: int = option(16, "tokens in one page of the KV cache")

    def __post_init__(self) -> None:
        for name in ("max_batch_size", "max_seq_len", "max_num_tokens", "max_draft_len", "max_budget"):
            check_range(name, getattr(self, name), least=1)
        check_range("page_size", self.page_size, least=1, most=MAX_PAGE_SIZE)
        if self.tp_size != 1:
            found = shown(self.tp_size)
            raise InputError(f"tp_size must be 1 (tensor parallelism is not supported yet), found {found}")
        needed = self.max_batch_size * (self.max_draft_len + 1)
        if self.max_num_tokens < needed:
            raise InputError(
                f"max_num_tokens must be at least max_batch_size * (max_draft_len + 1) = {needed} so that every "
                f"request can verify in one step, found {self.max_num_tokens}"
            )

    @property
    def max_positions(self) -> int:
        """Positions of a slot: the longest request, and a last block drafted and verified past its end."""
        return self.max_seq_len + self.max_draft_len + 1

    @property
    def scored_positions(self) -> int:
        """max_positions, rounded up so that every layer's scores begin where TensorRT takes an address."""
        return _rounded_up(self.max_positions, ADDRESS_ALIGNMENT // 2)

    @property
    def max_pillars(self) -> int:
        """max_budget, rounded up so that every layer's pillars begin where TensorRT takes an address."""
        return _rounded_up(self.max_budget, ADDRESS_ALIGNMENT // 4)

    @property
    def max_pages(self) -> int:
        """Pages of a slot that is full."""
        return -(-self.max_positions // self.page_size)

    @property
    def element_size(self) -> int:
        """Bytes of one weight or activation; `dtype` must have been resolved from `auto`."""
        return ELEMENT_SIZE[self.dtype]

    @property
    def kv_element_size(self) -> int:
        """Bytes of one number in the KV cache; `dtype` must have been resolved from `auto`."""
        return 1 if self.kv_cache_dtype == "fp8" else self.element_size


def _rounded_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
