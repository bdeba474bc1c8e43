"""What the kernels are built for; each op's params.h and plugin.cpp say the same."""

from __future__ import annotations

HEAD_DIMS = (64, 96, 128)
PAGE_SIZES = (16, 32, 64)
MAX_GROUP = 16  # query heads that share a KV head
MAX_BLOCK_ROWS = 17  # rows of one verification
MAX_SLOTS = 1024
VECTOR_NUMBERS = 8  # of 16 bits, which kernels read and write at a time
MAX_HIDDEN_SIZE = 32768
MAX_PARTS, MAX_SPLIT_HIDDEN_SIZE = 4, 8192  # of what AddRmsNorm adds, and of rows that it adds several parts to
MAX_INTERMEDIATE_SIZE = 2**20
MAX_VOCAB_SIZE = 2**19  # of SampleRows and AcceptDrafts
LEAST_CAPABILITY = (8, 0)  # of a GPU: what the kernels' matrix instructions need


def unserved(head_dim: int, group: int, page_size: int) -> str | None:
    """What of a model and its pages the kernels do not serve, as "expected ..., found ..."; None if they do."""
    if head_dim not in HEAD_DIMS:
        return f"expected head_dim {listed(HEAD_DIMS)}, found {head_dim}"
    if page_size not in PAGE_SIZES:
        return f"expected page_size {listed(PAGE_SIZES)}, found {page_size}"
    if group > MAX_GROUP:
        return f"expected at most {MAX_GROUP} query heads for each KV head, found {group}"
    return None


def serves_rows(hidden_size: int, intermediate_size: int) -> bool:
    """Whether AddRmsNorm and SiluMul take the rows of such a model."""
    fits = hidden_size <= MAX_HIDDEN_SIZE and intermediate_size <= MAX_INTERMEDIATE_SIZE
    return fits and hidden_size % VECTOR_NUMBERS == intermediate_size % VECTOR_NUMBERS == 0


def listed(numbers: tuple[int, ...]) -> str:
    """As in "64, 96 or 128"."""
    return f"{', '.join(map(str, numbers[:-1]))} or {numbers[-1]}"
