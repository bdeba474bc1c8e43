"""What a slot does in a step; the values are part of the plugins' contract."""

from enum import IntEnum


class Phase(IntEnum):
    """Phase of one slot in one step (plugin input `phase`)."""

    PREFILL = 0
    DRAFT = 1
    VERIFY = 2
    IDLE = 3
