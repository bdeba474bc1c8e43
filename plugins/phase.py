"""What a slot does in a step; the values are part of the plugins' contract."""

from enum import IntEnum


class Phase(IntEnum):
    """Phase of one slot in one step (plugin input `phase`)."""

    PREFILL = 0
    DRAFT = 1
    VERIFY = 2
    IDLE = 3


# For what runs for every request in every step: up to Python 3.11 Phase.DRAFT takes ten times as long to look up.
PREFILL, DRAFT, VERIFY, IDLE = Phase
