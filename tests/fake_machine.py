"""A driver, Python modules and an installation of the plugins that are not there, for `sparsespec doctor`."""

from __future__ import annotations

import ctypes
import json
import sys
from ctypes import c_char_p, c_int
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from sparsespec.runtime.doctor import cuda_driver


class FakeCuda:
    """libcuda.so.1 with one GPU, or with an error of cuInit."""

    def __init__(self, version: int, failure: int = 0) -> None:
        self.version, self.failure = version, failure

    def cuDriverGetVersion(self, version: Any) -> int:
        version._obj.value = self.version
        return 0

    def cuInit(self, flags: int) -> int:
        return self.failure

    def cuDeviceGetCount(self, count: Any) -> int:
        assert isinstance(count._obj, c_int)
        count._obj.value = 1
        return 0

    def cuGetErrorString(self, error: int, text: Any) -> int:
        assert isinstance(text._obj, c_char_p)
        text._obj.value = b"no CUDA-capable device is detected"
        return 0 if error == 100 else 1


def use_driver(monkeypatch: pytest.MonkeyPatch, library: FakeCuda | None, kernel: Path) -> None:
    real = ctypes.CDLL

    def load(name: str) -> object:
        if name != cuda_driver.LIBRARY:
            return real(name)
        if library is None:
            raise OSError("libcuda.so.1: no such file")
        return library

    monkeypatch.setattr(ctypes, "CDLL", load)
    monkeypatch.setattr(cuda_driver, "KERNEL_DRIVER", kernel)


def use_module(monkeypatch: pytest.MonkeyPatch, name: str, **contents: object) -> None:
    module = ModuleType(name)
    for each, value in contents.items():
        setattr(module, each, value)
    monkeypatch.setitem(sys.modules, name, module)


def write_build_info(folder: Path, *missing: str, tensorrt: str = "10.14.1") -> None:
    info = {
        "missing": missing,
        "cuda_architectures": ["90a-real"],
        "cuda_version": "13.0.88",
        "tensorrt_version": tensorrt,
        "tensorrt_headers": "system",
    }
    (folder / "build_info.json").write_text(json.dumps(info))
