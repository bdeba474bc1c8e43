"""Finding TensorRT, and what its versions do differently. What we use is alike in 10.3 to 11: the checks are here."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, cast

from sparsespec.builder.trt.api import Builder, INetworkDefinition, TensorRT

# Aliased plugin inputs and outputs came with 10.3.
LEAST_VERSION = (10, 3)
BEYOND_VERSION = (12, 0)
_BLACKWELL, _LEAST_FOR_BLACKWELL = (10, 0), (10, 8)
_FP8_CAPABILITY, _LEAST_FOR_FP8 = (8, 9), (10, 13)


class TensorRTUnavailableError(RuntimeError):
    """TensorRT is not here, or not one that is served; the message says what was found."""


def open_tensorrt() -> TensorRT:
    """Import TensorRT. TensorRTUnavailableError where that cannot be, or its version is not served."""
    try:
        module = importlib.import_module("tensorrt")
    except ImportError as error:
        raise TensorRTUnavailableError(f"Python cannot import tensorrt: {error}") from error
    # Such as a folder of that name, which Python imports as an empty package.
    found = getattr(module, "__version__", None)
    if found is None:
        raise TensorRTUnavailableError(f"expected TensorRT, found another module called tensorrt: {module!r}")
    if not LEAST_VERSION <= version_numbers(found) < BEYOND_VERSION:
        raise TensorRTUnavailableError(f"expected TensorRT 10.3 or newer and older than 12, found {found}")
    return cast(TensorRT, module)


def version_numbers(version: str) -> tuple[int, int]:
    """(11, 4) for 11.4.0.106; (0, 0) for what is no version."""
    major, _, rest = version.partition(".")
    minor = rest.partition(".")[0]
    return (int(major), int(minor)) if major.isdecimal() and minor.isdecimal() else (0, 0)


def obstacle_for_gpu(version: str, compute_capability: tuple[int, int]) -> str | None:
    """Why TensorRT of that version does not serve such a GPU; None where it does, as far as its release notes say."""
    if compute_capability >= _BLACKWELL and version_numbers(version) < _LEAST_FOR_BLACKWELL:
        return f"GPUs of compute capability 10.0 or newer need TensorRT 10.8 or newer, found {version}"
    return None


def obstacle_for_fp8(version: str, compute_capability: tuple[int, int]) -> str | None:
    """Why FP8 weights whose scales are network inputs cannot be had; None where they can.

    Before 10.13 scales had to be constants of the network (NvInfer.h, IQuantizeLayer).
    """
    if version_numbers(version) < _LEAST_FOR_FP8:
        return f"FP8 weights need TensorRT 10.13 or newer, found {version}"
    return _obstacle_for_fp8_tensors("FP8 weights need", compute_capability)


def obstacle_for_fp8_cache(compute_capability: tuple[int, int]) -> str | None:
    """Why an FP8 KV cache cannot be had; None where it can. Its scales are an input of plugins alone."""
    return _obstacle_for_fp8_tensors("an FP8 KV cache needs", compute_capability)


def _obstacle_for_fp8_tensors(what: str, compute_capability: tuple[int, int]) -> str | None:
    if compute_capability >= _FP8_CAPABILITY:
        return None
    major, minor = compute_capability
    return f"{what} a GPU of compute capability 8.9 or more, found {major}.{minor}"


def strongly_typed_network(trt: TensorRT, builder: Builder) -> INetworkDefinition:
    """An empty network. In 10.x types are the builder's to change unless it is told; 11 knows only this kind."""
    return builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))


def implement(interface: type, methods: object) -> Any:
    """An object of TensorRT's `interface` whose public methods are those of `methods`.

    TensorRT's interfaces exist only once it is imported, so no class of ours can be derived from one.
    """
    members = vars(type(methods)).items()
    names = [name for name, member in members if callable(member) and not name.startswith("_")]
    namespace = {name: _forwarding(getattr(methods, name)) for name in names}
    return type(type(methods).__name__, (interface,), namespace)()


def _forwarding(method: Callable[..., Any]) -> Callable[..., Any]:
    def forward(_self: object, *args: Any) -> Any:
        return method(*args)

    return forward
