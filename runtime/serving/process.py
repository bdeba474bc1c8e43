"""What holds for all threads of a process that serves. No torch."""

from __future__ import annotations

import sys

from sparsespec.runtime.collector import freeze_heap

# Before the event loop's thread has to let the step loop's go on. Python's own, 5 ms, is as long as a step
# (docs/performance.md, "Serving on the host").
_SWITCH_INTERVAL_S = 0.0005


def tune_process() -> None:
    """Let Python's threads take turns often, and its collector stop them seldom; once the LLM is made."""
    freeze_heap()
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
