"""Which of TensorRT-LLM's ranks hold a layer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RankLayout:
    """`pp_size` stages hold the layers one after another; `tp_size` neighbouring ranks share those of one stage."""

    tp_size: int
    pp_size: int
    num_layers: int

    @property
    def num_ranks(self) -> int:
        """Of all stages."""
        return self.tp_size * self.pp_size

    def ranks(self, stage: int) -> range:
        """Those that share one stage."""
        return range(stage * self.tp_size, (stage + 1) * self.tp_size)

    def locate(self, layer: int) -> tuple[int, int]:
        """The stage of a layer, and its number there: every stage counts from 0."""
        size, longer_stages = divmod(self.num_layers, self.pp_size)
        # What the division leaves over is spread over the first stages.
        boundary = longer_stages * (size + 1)
        if layer < boundary:
            return divmod(layer, size + 1)
        stage, local = divmod(layer - boundary, size)
        return longer_stages + stage, local
