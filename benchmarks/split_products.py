"""What products of few rows take whole and in parts, with the sum and norm that follow them.

    python benchmarks/split_products.py --json split_products.json

For o_proj and down_proj of two models, in bfloat16, on a GPU. Times are of CUDA graphs that find no weight in the L2
cache; whole products are cuBLAS's choice, which may divide them itself and add a kernel. The ways are timed in turn.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from cold_timing import Works, cold_microseconds
from sparsespec.builder.config_io import add_flags, check_range, from_flags, option
from sparsespec.builder.errors import InputError
from sparsespec.builder.report import check_report_path, this_machine
from sparsespec.builder.terminal import run_tool
from sparsespec.plugins.library import plugin_host_path, plugin_library_path
from sparsespec.plugins.plugin_host import PluginLibrary
from sparsespec.runtime.device.attention_ops import ReferenceAttention
from sparsespec.runtime.device.plugin_decoder_ops import PluginOps
from sparsespec.runtime.device.split_products import count_parts, linear_parts

_EPS = 1e-6
# Distinct weights in one graph.
_COPIES_BYTES, _MOST_COPIES = 2**29, 16
_PARTS = (1, 2, 3, 4)


@dataclass(frozen=True)
class Product:
    """x [rows, num_in] times W [num_out, num_in] transposed."""

    name: str
    num_out: int
    num_in: int


PRODUCTS = (
    Product("Qwen3-8B o_proj", 4096, 4096),
    Product("Qwen3-8B down_proj", 4096, 12288),
    Product("SmolLM2-135M o_proj", 576, 576),
    Product("SmolLM2-135M down_proj", 576, 1536),
)


@dataclass(frozen=True)
class SplitConfig:
    """What is timed."""

    rows: tuple[int, ...] = option((1, 8, 32, 96, 128, 184, 256, 512), "rows of a step")
    json: Path | None = option(None, "write what was measured to this file")

    def __post_init__(self) -> None:
        for rows in self.rows:
            check_range("rows", rows, least=1)


@dataclass(frozen=True)
class Timed:
    """Microseconds of a product, a sum and a norm, by the number of parts; None where a sum has no such parts."""

    product: str
    rows: int
    microseconds: tuple[float | None, ...]  # of 1, 2, 3 and 4 parts
    chosen: int  # parts, by the runtime

    def line(self) -> str:
        """Of the table."""
        times = " ".join("     -" if each is None else f"{each:6.2f}" for each in self.microseconds)
        return f"{self.product:24} {self.rows:5} rows, us in 1 to 4 parts: {times}; the runtime takes {self.chosen}"


class Bench:
    """Weights and the kernels that products go to."""

    def __init__(self) -> None:
        if not torch.cuda.is_available():
            raise InputError("split_products: needs a CUDA device")
        self._num_multiprocessors = torch.cuda.get_device_properties(0).multi_processor_count
        library = PluginLibrary(plugin_library_path(), plugin_host_path())
        self._ops = PluginOps(ReferenceAttention(), library, self._num_multiprocessors)
        self._stream = torch.cuda.Stream()

    def time(self, product: Product, rows: int) -> Timed:
        """All ways in turn."""
        count = max(2, min(_MOST_COPIES, _COPIES_BYTES // (2 * product.num_out * product.num_in)))
        weights = [_normal(product.num_out, product.num_in) for _ in range(count)]
        fitting = [parts for parts in _PARTS if product.num_in % (64 * parts) == 0]
        found = cold_microseconds([self._works(weights, rows, parts) for parts in fitting], self._stream)
        times = dict(zip(fitting, found, strict=True))
        chosen = count_parts(rows, weights[0].shape, self._num_multiprocessors)
        return Timed(product.name, rows, tuple(times.get(parts) for parts in _PARTS), chosen)

    def _works(self, weights: Sequence[Tensor], rows: int, num_parts: int) -> Works:
        num_out, num_in = weights[0].shape
        x, hidden, norm = _normal(rows, num_in), _normal(rows, num_out), _normal(num_out)

        def work(weight: Tensor) -> None:
            self._ops.add_parts(hidden, linear_parts(x, weight, num_parts), norm, _EPS)

        return [partial(work, weight) for weight in weights]


def measure(rows: Sequence[int]) -> Iterator[Timed]:
    """Every product at every number of rows."""
    bench = Bench()
    for product in PRODUCTS:
        for count in rows:
            yield bench.time(product, count)


def run(config: SplitConfig) -> int:
    """Measure, print and write."""
    if config.json is not None:
        check_report_path(config.json)
    timed = []
    for each in measure(config.rows):
        print(each.line(), flush=True)
        timed.append(dataclasses.asdict(each))
    if config.json is not None:
        document = {"machine": dataclasses.asdict(this_machine("cuda")), "products": timed}
        config.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 0


def _normal(*shape: int) -> Tensor:
    return torch.randn(shape, device="cuda").to(torch.bfloat16) / 64


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser, SplitConfig)
    return run_tool(lambda: run(from_flags(SplitConfig, parser.parse_args())))


if __name__ == "__main__":
    raise SystemExit(main())
