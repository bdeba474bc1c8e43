"""What a probe answers, and what it costs to be without each thing that is looked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["found", "missing", "unsuitable"]
Subject = Literal[
    "Python", "PyTorch", "NVIDIA driver", "GPUs", "CUDA toolkit", "plugin library", "plugin host", "TensorRT", "MPI"
]

_KERNELS = (
    "on a GPU, 16-bit engines stop without it; --attention reference does without, and is slower by orders of "
    "magnitude. Nothing on the CPU"
)


@dataclass(frozen=True)
class Finding:
    """One thing that was looked for; `cost` is empty where the machine lacks nothing by it."""

    subject: Subject
    state: State
    details: tuple[str, ...]  # lines
    cost: str

    def __post_init__(self) -> None:
        assert self.cost or self.state == "found", f"{self.subject} is {self.state}: expected what that costs"


def found(subject: Subject, *details: str, cost: str = "") -> Finding:
    """It is here; `cost` says what could be better about it."""
    return Finding(subject, "found", details, cost)


def missing(subject: Subject, *details: str) -> Finding:
    """It is not here, at the usual cost."""
    return Finding(subject, "missing", details, cost_of(subject))


def unsuitable(subject: Subject, *details: str, cost: str | None = None) -> Finding:
    """It is here and of no use, at the usual cost or the one given."""
    return Finding(subject, "unsuitable", details, cost or cost_of(subject))


def cost_of(subject: Subject) -> str:
    """What it costs to be without the subject."""
    match subject:
        case "Python" | "PyTorch":
            return "everything: engines are neither built nor run without it"
        case "NVIDIA driver":
            return "no GPU is used"
        case "GPUs":
            return "engines run on the CPU with the torch reference ops: for trying out and tests only"
        case "CUDA toolkit":
            return "nothing once the plugins are compiled; where they are not, an install cannot compile them"
        case "plugin library" | "plugin host":
            return _KERNELS
        case "TensorRT":
            return (
                "engines are neither built nor run with --backend tensorrt. The torch executor runs the same kernels "
                "on a GPU, through the plugin host"
            )
        case "MPI":
            return "nothing in this version: it is for tensor parallelism, and tp_size must be 1"
