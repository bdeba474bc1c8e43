"""A memory plan as a table, with what a device of known size has left and the most that would fit into it."""

from __future__ import annotations

from rich.table import Table

from sparsespec.builder.memory_plan import (
    LEFT_OUT,
    DeviceMemory,
    MemoryItem,
    MemoryPlan,
    largest_batch,
    largest_context,
    most_requests,
)
from sparsespec.builder.rope import longest_context

_USUAL_CONTEXTS = (2048, 8192, 32768)
_LARGEST = "Largest: engines built for that batch and context, else like this one, with KV pages for all."


def memory_table(plan: MemoryPlan, limit: DeviceMemory | None) -> Table:
    """Items with their size and share, and the total; with a limit also what is left and the most that would fit.

    Made for 96 columns; narrower ones wrap the notes.
    """
    table = _empty_table(_footnote(plan, limit))
    for item in plan.items:
        table.add_row(item.name, _item_size(item), f"{item.num_bytes / plan.num_bytes:.1%}", item.what)
    table.add_row("total", memory_size(plan.num_bytes), "", _purpose(plan), style="bold")
    if limit is not None:
        _add_left(table, plan, limit)
        _add_largest(table, plan, limit)
    return table


def memory_size(num_bytes: int) -> str:
    """In GB, MB or kB, decimal."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if num_bytes >= size:
            return f"{num_bytes / size:,.2f} {unit}"
    return f"{num_bytes / 1e3:,.2f} kB"


def _empty_table(footnote: str) -> Table:
    table = Table(
        title="memory plan",
        title_justify="left",
        title_style="bold",
        caption=footnote,
        caption_justify="left",
        show_header=False,
        box=None,
        pad_edge=False,
    )
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(style="dim")
    return table


def _item_size(item: MemoryItem) -> str:
    return f"{'~' if item.is_estimate else ''}{memory_size(item.num_bytes)}"


def _purpose(plan: MemoryPlan) -> str:
    use = plan.use
    return f"for {use.max_batch_size:,} requests of up to {plan.build.max_seq_len:,} tokens, {use.draft_len} drafts"


def _add_left(table: Table, plan: MemoryPlan, limit: DeviceMemory) -> None:
    left = limit.num_bytes - plan.num_bytes
    what = f"of {memory_size(limit.num_bytes)} on {limit.name}"
    if left >= 0:
        table.add_row("left", memory_size(left), f"{left / max(1, limit.num_bytes):.1%}", what)
    else:
        table.add_row("missing", memory_size(-left), "", what, style="bold red")


def _add_largest(table: Table, plan: MemoryPlan, limit: DeviceMemory) -> None:
    model, build, use = plan.model, plan.build, plan.use
    table.add_row()
    longest = longest_context(model.max_position_embeddings, model.rope_scaling)
    for context in sorted({*_USUAL_CONTEXTS, build.max_seq_len}):
        if context <= longest:
            number = largest_batch(model, build, use, limit.num_bytes, context)
            table.add_row("largest batch", f"{number:,}", "", f"requests of {context:,} tokens each")
    if use.max_batch_size <= most_requests(build, use):
        number = largest_context(model, build, use, limit.num_bytes, use.max_batch_size)
        table.add_row("largest context", f"{number:,}", "", f"tokens for each of {use.max_batch_size:,} requests")


def _footnote(plan: MemoryPlan, limit: DeviceMemory | None) -> str:
    distribution = memory_size(plan.distribution_bytes)
    left_out = (
        f"Not counted: {LEFT_OUT}. Sampling holds several times {distribution}, a distribution per row of logits."
    )
    return left_out if limit is None else f"{_LARGEST}\n{left_out}"
