"""The executor whose decoder is a pair of TensorRT engines; all else is the torch executor's."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsespec.builder.engine_dir import EngineConfig
from sparsespec.builder.errors import InputError
from sparsespec.builder.trt.config import TensorRTBuild
from sparsespec.runtime.config import SpeculationConfig
from sparsespec.runtime.device.drafter import make_drafter
from sparsespec.runtime.device.executor_config import ExecutorConfig
from sparsespec.runtime.device.step_batch import StepBatch
from sparsespec.runtime.device.torch_executor import TorchExecutor
from sparsespec.runtime.trt.engines import TensorRTEngines
from sparsespec.runtime.trt.session import TensorRTSession


class TensorRTExecutor(TorchExecutor):
    """executor.Executor: prepare and sample in torch, execute by TensorRT, in CUDA graphs where steps repeat."""

    def __init__(
        self,
        engine: EngineConfig,
        weights: dict[str, Tensor],
        speculation: SpeculationConfig,
        config: ExecutorConfig,
        engines: TensorRTEngines,
    ) -> None:
        """Raises InputError for a drafter or sizes that the engines do not serve, or where there is no memory."""
        assert engine.tensorrt is not None
        check_scores(engine.tensorrt, speculation)
        super().__init__(engine, weights, speculation, config)
        self._session = TensorRTSession(engines, weights, self.memory)

    @torch.inference_mode()
    def execute(self, batch: StepBatch) -> Tensor:
        """See Executor. Logits [num_logits, vocab_size]."""
        return self._session.run(batch)


def check_scores(built: TensorRTBuild, speculation: SpeculationConfig) -> None:
    """InputError for a drafter that needs other scores than the engines leave, or chooses within attention."""
    needs = make_drafter(speculation).needs
    if needs.oracle:
        raise InputError(f"drafter {speculation.drafter!r} runs on --backend torch only")
    if needs.score_planes == "none":
        return
    for name, wanted, found in (
        ("score_planes", needs.score_planes, built.score_planes),
        ("score_normalizer", speculation.score_normalizer, built.score_normalizer),
    ):
        if wanted != found:
            raise InputError(
                f"{name}: this drafter needs {wanted!r}, and the TensorRT engines were built with {found!r}; build "
                f"with --{name} {wanted}, or run with --backend torch"
            )
