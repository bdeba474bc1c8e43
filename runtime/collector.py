"""Python's collector and the step loop: what is there for good need not be looked at again. No torch."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


def freeze_heap() -> None:
    """Collect, then leave all that exists now out of collections to come. For applications, once their LLM is loaded.

    Modules and a model are half a million objects: a full collection while requests run stops the step loop for some
    0.3 s (docs/performance.md). Of the whole process; `gc.unfreeze` undoes it.
    """
    gc.collect()
    gc.freeze()


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
