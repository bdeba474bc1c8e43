"""NVIDIA's driver, asked through its own library: PyTorch may be built without CUDA, or not be here."""

from __future__ import annotations

import ctypes
import re
from ctypes import byref, c_char_p, c_int
from dataclasses import dataclass
from pathlib import Path

LIBRARY = "libcuda.so.1"
KERNEL_DRIVER = Path("/proc/driver/nvidia/version")


class DriverUnavailableError(RuntimeError):
    """The driver's library cannot be opened; the message is the loader's."""


@dataclass(frozen=True)
class CudaDriver:
    """What the driver says of itself."""

    cuda_version: tuple[int, int]  # the newest CUDA that it serves, such as (13, 0)
    num_gpus: int
    problem: str  # why it does not start; empty if it does


def open_driver() -> CudaDriver:
    """Start the driver. DriverUnavailableError if there is none."""
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise DriverUnavailableError(str(error)) from error
    version, num_gpus = c_int(), c_int()
    failure: int = (
        library.cuDriverGetVersion(byref(version)) or library.cuInit(0) or library.cuDeviceGetCount(byref(num_gpus))
    )
    return CudaDriver(
        cuda_version=(version.value // 1000, version.value % 1000 // 10),
        num_gpus=num_gpus.value,
        problem=_describe(library, failure) if failure else "",
    )


def kernel_driver_version() -> str | None:
    """Of the driver in the kernel, such as "580.65.06"; None where it says nothing."""
    try:
        text = KERNEL_DRIVER.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    version = re.search(r"\b\d{3,}\.\d+(\.\d+)?\b", text)
    return version[0] if version else None


def _describe(library: ctypes.CDLL, failure: int) -> str:
    text = c_char_p()
    known = library.cuGetErrorString(failure, byref(text)) == 0 and text.value is not None
    return f"{(text.value or b'').decode(errors='replace')} (error {failure})" if known else f"error {failure}"
