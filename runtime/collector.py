"""Python's collector and the step loop: what is there for good need not be looked at again. No torch."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

# New objects that begin a collection, 700 by Python's default: a step of 512 requests makes thousands, nearly all of
# which are gone with it; collections made the slowest steps three times as long (docs/performance.md).
_NEW_OBJECTS = 50_000


def freeze_heap() -> None:
    """Collect, leave what exists now out of collections to come, and have fewer of them; once an LLM is loaded.

    Modules and a model are half a million objects: a full collection while requests run stops the step loop for some
    0.3 s (docs/performance.md). Of the whole process; `gc.unfreeze` and `gc.set_threshold` undo it.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_NEW_OBJECTS, *gc.get_threshold()[1:])


@contextmanager
def collector_held() -> Iterator[None]:
    """No collection begins in here, in any thread: for what the end of some object would interrupt."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
