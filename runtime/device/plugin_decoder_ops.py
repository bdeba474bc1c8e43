"""The op vocabulary in torch, with the plugins for what is neither a product nor attention."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsespec.plugins.plugin_signature import add_rms_norm_fields, add_rms_norm_inputs, silu_mul_fields
from sparsespec.runtime.device.attention_ops import AttentionOps
from sparsespec.runtime.device.plugin_ops import Plugin, PluginSource
from sparsespec.runtime.device.split_products import count_parts, linear_parts
from sparsespec.runtime.device.torch_ops import TorchOps


class PluginOps(TorchOps):
    """TorchOps for models that plugins.limits.serves_rows; one kernel where torch takes nine, or two."""

    def __init__(self, attention: AttentionOps, library: PluginSource, num_multiprocessors: int) -> None:
        """attention: who does the project's own ops. library: has AddRmsNorm and SiluMul. The GPU has so many."""
        super().__init__(attention)
        self._library = library
        self._num_multiprocessors = num_multiprocessors
        self._add_norms: dict[tuple[int, float], Plugin] = {}
        self._silu_muls: dict[int, Plugin] = {}

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See Ops. Of the sum with zeros: two kernels where torch takes seven."""
        return self.add_parts(torch.zeros_like(x), x[None], weight, eps)[1]

    def add_rms_norm(self, hidden: Tensor, delta: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """See Ops. The sum is hidden itself, updated in place."""
        return self.add_parts(hidden, delta[None], weight, eps)

    def linear_add_rms_norm(
        self, hidden: Tensor, x: Tensor, weight: Tensor, norm_weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """See Ops. The product comes in parts where that makes it faster; the sum is hidden itself."""
        num_parts = count_parts(len(x), weight.shape, self._num_multiprocessors)
        return self.add_parts(hidden, linear_parts(x, weight, num_parts), norm_weight, eps)

    def add_parts(self, hidden: Tensor, delta: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """As `add_rms_norm`, for delta [num_parts, num_rows, hidden_size]: the sum is of all parts."""
        kind = (len(weight), eps)
        if kind not in self._add_norms:
            self._add_norms[kind] = self._library.create("AddRmsNorm", add_rms_norm_fields(*kind))
        normed, total = self._add_norms[kind].run(add_rms_norm_inputs(hidden, delta, weight))
        return total, normed

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """See Ops."""
        size = gate_up.shape[1] // 2
        if size not in self._silu_muls:
            self._silu_muls[size] = self._library.create("SiluMul", silu_mul_fields(size))
        return self._silu_muls[size].run([gate_up])[0]
