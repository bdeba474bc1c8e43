"""Whether steps have fixed shapes and run as CUDA graphs, or vary in shape and run op by op."""

from __future__ import annotations

from sparsespec.builder.build_config import BuildConfig
from sparsespec.builder.errors import InputError
from sparsespec.plugins.limits import MAX_VOCAB_SIZE
from sparsespec.runtime.config import GraphsName
from sparsespec.runtime.device.graph_executor import GraphExecutor
from sparsespec.runtime.device.plugin_ops import PluginAttention
from sparsespec.runtime.device.step_ops import PluginStepOps, StepOps
from sparsespec.runtime.device.step_reference import ReferenceStepOps
from sparsespec.runtime.device.torch_executor import TorchExecutor


def choose_steps(eager: TorchExecutor, choice: GraphsName, build: BuildConfig) -> GraphExecutor | None:
    """What `choice` means for this executor; None: it runs by itself.

    Raises InputError where graphs are asked for and cannot be had. Without a GPU the shapes are fixed all the same.
    """
    attention, needs = eager.attention_ops, eager.drafter.needs
    plugins = isinstance(attention, PluginAttention)
    vocab_size = eager.memory.vocab_size
    served = plugins and needs.fixed_shapes and vocab_size <= MAX_VOCAB_SIZE
    if choice == "off" or (choice == "auto" and not served):
        return None
    if plugins and vocab_size > MAX_VOCAB_SIZE:
        raise InputError(f"cuda_graphs: expected a vocabulary of at most {MAX_VOCAB_SIZE} tokens, found {vocab_size}")
    if not needs.fixed_shapes:
        raise InputError(
            f"cuda_graphs: expected a drafter whose pillars go by scores as attention leaves them (ranking mean, "
            f"moving_from diagonal), found {eager.drafter.config.drafter!r}; auto and off run it"
        )
    if eager.memory.device.type == "cuda" and not plugins:
        raise InputError("cuda_graphs: expected attention by plugins, found the reference, which waits for the host")
    return GraphExecutor(eager, _step_ops(eager), build)


def _step_ops(eager: TorchExecutor) -> StepOps:
    if isinstance(eager.attention_ops, PluginAttention):
        return PluginStepOps(eager.attention_ops.library, eager.drafter.config.coupling)
    return ReferenceStepOps()
