"""What it costs that engines take their weights as inputs: the products of a decoder, built by TensorRT both ways.

    python benchmarks/tensorrt_weights.py --engine_dir DIR --json weights.json

draft.engine and verify.engine share one copy of the weights, so TensorRT cannot repack them when it builds, and may
choose other tactics than for constants. Here each product is built and timed with its weight as an input and as a
constant, next to torch's. In float16, whatever the engine's type: constants come from numpy, which has no bfloat16.

Times are of products in a CUDA graph that find no weight in the L2 cache. A ratio above 1 is the price of inputs. On an
H200 the same kernel timed both ways gave ratios within 2.5% of 1, and steps within 1%: less than that is noise.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import linear

from cold_timing import Works, cold_microseconds
from sparsespec.builder.config_io import add_flags, check_range, from_flags, option
from sparsespec.builder.engine_dir import read_engine_config
from sparsespec.builder.errors import BackendError, InputError
from sparsespec.builder.fused_weights import fused_specs
from sparsespec.builder.model_config import ModelConfig
from sparsespec.builder.report import Metric, Report, check_report_path, this_machine
from sparsespec.builder.terminal import run_tool
from sparsespec.builder.trt.api import ICudaEngine, INetworkDefinition, TensorRT
from sparsespec.builder.trt.availability import UnusableError, find_gpu
from sparsespec.builder.trt.compile import Configure
from sparsespec.builder.trt.config import TensorRTConfig
from sparsespec.builder.trt.messages import ErrorLog, python_logger
from sparsespec.builder.trt.versions import (
    TensorRTUnavailableError,
    implement,
    obstacle_for_gpu,
    open_tensorrt,
    strongly_typed_network,
)

# Family; vocabulary, hidden and intermediate sizes; layers, heads, KV heads and their size; nothing else matters here.
QWEN3_8B = ModelConfig("qwen3", 151936, 4096, 12288, 36, 32, 8, 128, 1e-6, 1e6, 40960, False, (151645,))
AnswerT = TypeVar("AnswerT")
LAYER_PRODUCTS = ("qkv", "o_proj", "gate_up", "down_proj")
# Distinct weights in one graph, which share what its launch takes; one where a weight is so large that it hides that.
MOST_COPIES, COPIES_BYTES = 4, 2**29
MOST_DIFFERENCE = 0.05  # of the largest result: float16 sums of other orders are far nearer, other weights' far off


@dataclass(frozen=True)
class WeightsConfig:
    """What is timed."""

    engine_dir: Path | None = option(None, "engine directory whose sizes are taken; those of Qwen3-8B when not given")
    rows: tuple[int, ...] = option((1, 8, 96, 181, 864, 2048), "rows of a step; engines are built for each")
    builder_opt: int = option(3, "TensorRT's optimisation level, 0 to 5, as for build_engine.py")
    json: Path | None = option(None, "write a machine-readable report to this file")

    def __post_init__(self) -> None:
        for rows in self.rows:
            check_range("rows", rows, least=1)
        TensorRTConfig(builder_opt=self.builder_opt)  # knows the limits


@dataclass(frozen=True)
class Product:
    """x [rows, num_in] times W [num_out, num_in] transposed."""

    name: str
    num_out: int
    num_in: int
    per_step: int  # how often a step has it

    @property
    def num_copies(self) -> int:
        """Weights in a graph."""
        return max(1, min(MOST_COPIES, COPIES_BYTES // (2 * self.num_out * self.num_in)))


@dataclass(frozen=True)
class Comparison:
    """Microseconds of one product, or of all in a step."""

    name: str
    rows: int
    as_input: float
    as_constant: float
    by_torch: float

    @property
    def ratio(self) -> float:
        """Above 1 where the input is slower."""
        return self.as_input / self.as_constant

    def line(self) -> str:
        """Of the table."""
        return (
            f"{self.name:10} {self.rows:6} rows {self.as_input:10.1f} us as input {self.as_constant:10.1f} us as "
            f"constant {self.ratio:7.3f} ratio {self.by_torch:10.1f} us by torch"
        )

    def metrics(self) -> tuple[Metric, ...]:
        """As a report tells them."""
        times = {"as_input": self.as_input, "as_constant": self.as_constant, "by_torch": self.by_torch}
        where = f"{self.name}_{self.rows}_rows"
        return (
            *(Metric(f"{where}_{way}", value, "microseconds") for way, value in times.items()),
            Metric(f"{where}_ratio", self.ratio, "as_input/as_constant"),
        )


def products(model: ModelConfig) -> tuple[Product, ...]:
    """The four of each layer, and lm_head over all rows."""
    specs = fused_specs(model, "float16")

    def product(name: str, weight: str, per_step: int) -> Product:
        num_out, num_in = specs[weight].shape
        return Product(name, num_out, num_in, per_step)

    of_layer = (product(name, f"layers.0.{name}", model.num_layers) for name in LAYER_PRODUCTS)
    return (*of_layer, product("lm_head", "embedding" if model.tie_word_embeddings else "lm_head", 1))


def step_of(timed: Sequence[Comparison], of: Sequence[Product]) -> Comparison:
    """All products of a step of num_layers layers; timed: one for each of them, of one number of rows."""
    pairs = [(each, product.per_step) for each, product in zip(timed, of, strict=True)]
    return Comparison(
        name="step",
        rows=timed[0].rows,
        as_input=sum(each.as_input * count for each, count in pairs),
        as_constant=sum(each.as_constant * count for each, count in pairs),
        by_torch=sum(each.by_torch * count for each, count in pairs),
    )


class ProductEngines:
    """Engines of one product each: `y` of `x` and, where that is an input, `weight`."""

    def __init__(self, trt: TensorRT, builder_opt: int, configure: Configure | None = None) -> None:
        """configure: see Toolchain."""
        self.trt = trt
        self._builder_opt = builder_opt
        self._configure = configure
        self._errors = ErrorLog()
        self._recorder = implement(trt.IErrorRecorder, self._errors)
        self._builder, self._runtime = trt.Builder(python_logger(trt)), trt.Runtime(python_logger(trt))
        self._builder.error_recorder = self._runtime.error_recorder = self._recorder

    def build(self, product: Product, rows: int, constant: NDArray[np.float16] | None) -> bytes:
        """Serialised; tuned for that many rows. BackendError where TensorRT builds none."""
        network = strongly_typed_network(self.trt, self._builder)
        write_product(self.trt, network, product, constant)
        config, profile = self._builder.create_builder_config(), self._builder.create_optimization_profile()
        # From one row, as an engine's: the same tactic has to serve fewer rows.
        profile.set_shape("x", (1, product.num_in), (rows, product.num_in), (rows, product.num_in))
        config.add_optimization_profile(profile)
        config.builder_optimization_level = self._builder_opt
        if self._configure is not None:
            self._configure(config)
        plan = self._builder.build_serialized_network(network, config)
        return bytes(self.given(plan, f"to build {product.name} of {rows} rows"))

    def load(self, plan: bytes) -> ICudaEngine:
        """BackendError where TensorRT does not take it."""
        return self.given(self._runtime.deserialize_cuda_engine(plan), "the engine that it has just built")

    def given(self, answer: AnswerT | None, what: str) -> AnswerT:
        """TensorRT's answer. BackendError with its words where that is None or False."""
        if answer is None or answer is False:
            raise BackendError(f"TensorRT refused {what}: {self._errors.take()}")
        return answer


def write_product(
    trt: TensorRT, network: INetworkDefinition, product: Product, constant: NDArray[np.float16] | None
) -> None:
    """As TensorRTOps.linear writes it. TensorRT reads `constant` [num_out, num_in] until it has built."""
    half, op, shape = trt.DataType.HALF, trt.MatrixOperation, (product.num_out, product.num_in)
    x = network.add_input("x", half, (-1, product.num_in))
    if constant is None:
        weight = network.add_input("weight", half, shape)
    else:
        weight = network.add_constant(shape, constant).get_output(0)
    y = network.add_matrix_multiply(x, op.NONE, weight, op.TRANSPOSE).get_output(0)
    y.name = "y"
    network.mark_output(y)


class BoundProduct:
    """An engine of one product, bound to tensors by name; each has memory of its own."""

    def __init__(self, engines: ProductEngines, plan: bytes, tensors: Mapping[str, Tensor], stream_handle: int) -> None:
        """stream_handle: cudaStream_t to run on. BackendError for what TensorRT refuses."""
        self._engines, self.tensors, self._stream_handle = engines, tensors, stream_handle
        self._engine = engines.load(plan)
        size = max(1, self._engine.get_device_memory_size_for_profile_v2(0))
        self._activations = torch.empty(size, dtype=torch.uint8, device=tensors["x"].device)
        strategy = engines.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        self._context = engines.given(self._engine.create_execution_context(strategy), "an execution context")
        self._context.set_device_memory(self._activations.data_ptr(), size)
        engines.given(self._context.set_optimization_profile_async(0, stream_handle), "the profile")
        engines.given(self._context.set_input_shape("x", tuple(tensors["x"].shape)), "the shape of x")
        for name, tensor in tensors.items():
            engines.given(self._context.set_tensor_address(name, tensor.data_ptr()), f"memory for {name}")
        engines.given(not self._context.infer_shapes(), "these inputs")

    def enqueue(self) -> None:
        """Compute y in stream order."""
        self._engines.given(self._context.execute_async_v3(self._stream_handle), "to run")


class Bench:
    """Compares products on the current CUDA device."""

    def __init__(self, trt: TensorRT, builder_opt: int) -> None:
        self._engines = ProductEngines(trt, builder_opt)
        self._stream = torch.cuda.Stream()

    def compare(self, product: Product, rows: int) -> Comparison:
        """Build and time. BackendError where TensorRT fails, or its results are not torch's."""
        weights = [_random(product.num_out, product.num_in) * 0.02 for _ in range(product.num_copies)]
        x = _random(rows, product.num_in)
        as_input = self._bound(product, x, weights, None)
        as_constant = self._bound(product, x, weights, weights[0].cpu().numpy())
        by_torch = [partial(linear, x, weight) for weight in weights]
        ways: list[Works] = [[each.enqueue for each in as_input], [each.enqueue for each in as_constant], by_torch]
        times = cold_microseconds(ways, self._stream)
        check_result(product, as_input[-1].tensors["y"], linear(x, weights[-1]))
        check_result(product, as_constant[-1].tensors["y"], linear(x, weights[0]))
        return Comparison(product.name, rows, *times)

    def _bound(
        self, product: Product, x: Tensor, weights: Sequence[Tensor], constant: NDArray[np.float16] | None
    ) -> list[BoundProduct]:
        """An engine for each weight: a constant's memory is its engine's own, so all have copies of the same one."""
        plan = self._engines.build(product, len(x), constant)
        y = x.new_full((len(x), product.num_out), float("nan"))
        given = [{"x": x, "y": y, **({"weight": weight} if constant is None else {})} for weight in weights]
        return [BoundProduct(self._engines, plan, tensors, self._stream.cuda_stream) for tensors in given]


def check_result(product: Product, found: Tensor, expected: Tensor) -> None:
    """BackendError where TensorRT computed something else than torch: it was not the product that was timed."""
    difference, limit = float((found - expected).abs().max()), MOST_DIFFERENCE * float(expected.abs().max())
    if not difference <= limit:
        raise BackendError(f"{product.name}: expected torch's results within {limit:.3g}, found {difference:.3g}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns 0 or an exit code of `run_tool`."""
    parser = argparse.ArgumentParser(
        prog="tensorrt_weights", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_flags(parser, WeightsConfig)
    flags = parser.parse_args(argv)
    return run_tool(lambda: _run(from_flags(WeightsConfig, flags)))


def _run(config: WeightsConfig) -> int:
    if config.json is not None:
        check_report_path(config.json)
    model = QWEN3_8B if config.engine_dir is None else read_engine_config(config.engine_dir).model
    listed = products(model)
    trt = _usable_tensorrt()
    print(f"{torch.cuda.get_device_name()}, TensorRT {trt.__version__}, float16", flush=True)
    found = _compare_all(Bench(trt, config.builder_opt), config.rows, listed)
    if config.json is not None:
        sections = {"WeightsConfig": dataclasses.asdict(config), "model": dataclasses.asdict(model)}
        Report(
            tool="tensorrt_weights",
            version=version("sparsespec"),
            machine=this_machine("cuda"),
            config={**sections, "tensorrt": {"version": trt.__version__}},
            metrics=tuple(metric for each in found for metric in each.metrics()),
        ).write(config.json)
    return 0


def _compare_all(bench: Bench, rows: Sequence[int], listed: Sequence[Product]) -> list[Comparison]:
    """Products of every number of rows, then the steps; printed one by one, since each takes seconds to build."""
    found: list[Comparison] = []
    steps: list[Comparison] = []
    for count in rows:
        for product in listed:
            found.append(bench.compare(product, count))
            print(found[-1].line(), flush=True)
        steps.append(step_of(found[-len(listed) :], listed))
    print("\n".join(step.line() for step in steps))
    return found + steps


def _usable_tensorrt() -> TensorRT:
    try:
        trt, gpu = open_tensorrt(), find_gpu("auto")
    except (TensorRTUnavailableError, UnusableError) as error:
        raise InputError(f"nothing can be timed here: {error}") from error
    obstacle = obstacle_for_gpu(trt.__version__, gpu.compute_capability)
    if obstacle is not None:
        raise InputError(f"nothing can be timed here: {obstacle}")
    return trt


def _random(rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns, dtype=torch.float16, device="cuda")


if __name__ == "__main__":
    raise SystemExit(main())
