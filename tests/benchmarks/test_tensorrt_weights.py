"""The price of weights as inputs: its networks by a real builder, its calls on an engine, and its sums.

Run as a program, this module builds every product with TensorRT for RTX on the CPU, and prints the engines' sizes.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import tensorrt_weights
from build_on_rtx import COMPUTE_CAPABILITY
from sparsespec.builder.build_config import BuildConfig
from sparsespec.builder.errors import BackendError
from tensorrt_weights import QWEN3_8B, BoundProduct, Comparison, Product, ProductEngines, main, products, step_of
from tiny_models import tiny_model_config, write_tiny_engine

MODEL = tiny_model_config(family="qwen3", num_heads=4, num_kv_heads=2, head_dim=64, hidden_size=256)
PROGRAM = Path(tensorrt_weights.__file__)


def build_here() -> dict[str, tuple[int, int]]:
    """Product -> bytes of its engine with the weight as input, and as constant."""
    rtx: Any = import_module("tensorrt_rtx_bindings")

    def for_one_gpu(config: Any) -> None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(rtx.ComputeCapability, COMPUTE_CAPABILITY), 0)

    engines = ProductEngines(rtx, 3, for_one_gpu)

    def sizes(product: Product) -> tuple[int, int]:
        constant = torch.randn(product.num_out, product.num_in, dtype=torch.float16).numpy()
        return len(engines.build(product, 8, None)), len(engines.build(product, 8, constant))

    return {product.name: sizes(product) for product in products(MODEL)}


@pytest.mark.skipif(find_spec("tensorrt_rtx_bindings") is None, reason="needs the package tensorrt-rtx-cu13-bindings")
def test_a_constant_is_in_the_engine_and_an_input_is_not() -> None:
    """By a real builder, in a process of its own: what goes wrong in there ends in a crash."""
    path = os.pathsep.join((str(PROGRAM.parent), str(Path(__file__).parents[1])))
    environment = os.environ | {"PYTHONPATH": path}
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    for product in products(MODEL):
        weight = 2 * product.num_out * product.num_in
        as_input, as_constant = found[product.name]
        print(f"{product.name}: weight {weight} bytes, engine {as_input} as input, {as_constant} as constant")
        assert as_input < weight < as_constant


def test_products_are_those_of_the_decoder() -> None:
    """Of Qwen3-8B, by hand."""
    found = {each.name: (each.num_out, each.num_in, each.per_step) for each in products(QWEN3_8B)}
    assert found == {
        "qkv": (6144, 4096, 36),
        "o_proj": (4096, 4096, 36),
        "gate_up": (24576, 4096, 36),
        "down_proj": (4096, 12288, 36),
        "lm_head": (151936, 4096, 1),
    }
    assert [each.num_copies for each in products(QWEN3_8B)] == [4, 4, 2, 4, 1]


def test_a_step_has_every_layer_and_one_lm_head() -> None:
    made = (Product("qkv", 3, 2, per_step=36), Product("lm_head", 5, 2, per_step=1))
    step = step_of((Comparison("qkv", 8, 2.0, 1.0, 1.5), Comparison("lm_head", 8, 30.0, 24.0, 20.0)), made)
    assert step == Comparison("step", 8, 102.0, 60.0, 74.0)
    assert step.ratio == 1.7
    assert " ".join(step.line().split()) == (
        "step 8 rows 102.0 us as input 60.0 us as constant 1.700 ratio 74.0 us by torch"
    )
    assert [(each.name, each.value) for each in step.metrics()] == [
        ("step_8_rows_as_input", 102.0),
        ("step_8_rows_as_constant", 60.0),
        ("step_8_rows_by_torch", 74.0),
        ("step_8_rows_ratio", 1.7),
    ]


class FakeContext:
    """Notes what it is told; says no to one of the calls."""

    def __init__(self, refused: str | None) -> None:
        self.refused = refused
        self.calls: dict[str, object] = {}

    def __getattr__(self, name: str) -> Any:
        def call(*args: object) -> object:
            self.calls[f"{name} {args[0]}" if name == "set_tensor_address" else name] = args
            return [] if name == "infer_shapes" else name != self.refused

        return call


def fake_engines(context: FakeContext) -> ProductEngines:
    """Over a TensorRT whose every engine has that context."""

    class FakeInterface:
        """Of nothing that is asked of it here."""

    engine = SimpleNamespace(
        get_device_memory_size_for_profile_v2=lambda _profile: 640, create_execution_context=lambda _strategy: context
    )

    class FakeTensorRT:
        ILogger = IErrorRecorder = FakeInterface
        ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED=1)

        def Builder(self, logger: object) -> Any:
            return SimpleNamespace()

        def Runtime(self, logger: object) -> Any:
            return SimpleNamespace(deserialize_cuda_engine=lambda plan: engine if plan == b"plan" else None)

    return ProductEngines(FakeTensorRT(), 3)  # type: ignore[arg-type]


def some_tensors() -> dict[str, Tensor]:
    return {"x": torch.zeros(8, 2), "y": torch.zeros(8, 3), "weight": torch.zeros(3, 2)}


def test_an_engine_is_bound_to_what_it_computes_with() -> None:
    context, tensors = FakeContext(None), some_tensors()
    BoundProduct(fake_engines(context), b"plan", tensors, 77).enqueue()
    _, size = context.calls.pop("set_device_memory")  # type: ignore[misc]
    assert size == 640
    assert context.calls == {
        "set_optimization_profile_async": (0, 77),
        "set_input_shape": ("x", (8, 2)),
        **{f"set_tensor_address {name}": (name, tensor.data_ptr()) for name, tensor in tensors.items()},
        "infer_shapes": (),
        "execute_async_v3": (77,),
    }


@pytest.mark.parametrize(
    "refused", ["set_optimization_profile_async", "set_input_shape", "set_tensor_address", "execute_async_v3"]
)
def test_what_tensorrt_refuses_is_told(refused: str) -> None:
    with pytest.raises(BackendError, match="TensorRT refused"):
        BoundProduct(fake_engines(FakeContext(refused)), b"plan", some_tensors(), 0).enqueue()


def test_an_engine_that_tensorrt_does_not_take_is_told() -> None:
    with pytest.raises(BackendError, match="the engine that it has just built"):
        BoundProduct(fake_engines(FakeContext(None)), b"another plan", some_tensors(), 0)


def test_results_of_other_weights_are_not_timed() -> None:
    product, right = Product("qkv", 3, 2, per_step=1), torch.tensor([[1.0, -2.0, 0.5]])
    tensorrt_weights.check_result(product, right + 0.09, right)
    for wrong in (right + 0.11, right * float("nan")):
        with pytest.raises(BackendError, match=r"qkv: expected torch's results within 0\.1"):
            tensorrt_weights.check_result(product, wrong, right)


@pytest.mark.skipif(
    find_spec("tensorrt") is not None and torch.cuda.is_available(), reason="TensorRT and a GPU are here"
)
def test_without_tensorrt_or_gpu_one_line_says_so() -> None:
    done = subprocess.run([sys.executable, str(PROGRAM)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: nothing can be timed here: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--rows", "8", "0"], "rows must be at least 1, found 0"),
        (["--builder_opt", "6"], "builder_opt must be at most 5, found 6"),
        (["--engine_dir", "nowhere"], "nowhere"),
        (["--json", "nowhere/report.json"], "cannot write the report"),
    ],
)
def test_flags_that_cannot_be_used_are_told(
    flags: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(flags) == 2
    assert expected in capsys.readouterr().err


@pytest.mark.tensorrt
@pytest.mark.gpu
def test_every_ratio_is_a_number(tmp_path: Path) -> None:
    build = BuildConfig(dtype="bfloat16", max_batch_size=2, max_seq_len=128, max_num_tokens=64)
    engine = write_tiny_engine(tmp_path / "engine", MODEL, build, seed=0)
    report = tmp_path / "report.json"
    assert main(["--engine_dir", str(engine), "--rows", "1", "8", "--json", str(report)]) == 0
    metrics = {each["name"]: each["value"] for each in json.loads(report.read_text())["metrics"]}
    ratios = {name: value for name, value in metrics.items() if name.endswith("_ratio")}
    print(ratios)
    assert len(ratios) == 2 * (len(products(MODEL)) + 1)
    assert all(math.isfinite(value) and value > 0 for value in metrics.values())


if __name__ == "__main__":
    print(json.dumps(build_here()))
