"""transformers' continuous batching with an engine's own weights, for whole answers to the same prompts."""

from __future__ import annotations

import time
from collections.abc import Mapping

from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from sparsespec.builder.fused_weights import fused_sources
from sparsespec.builder.model_config import ModelConfig
from sparsespec.runtime.config import RuntimeConfig, SpeculationConfig
from sparsespec.runtime.llm import LLM
from sparsespec.runtime.loading import LoadedEngine
from throughput_study.cases import RESULT_LAG, Traffic
from throughput_study.windows import Window, finish


def answer(engine: LoadedEngine, speculation: SpeculationConfig, traffic: Traffic, chunk_size: int) -> Window:
    """Prompts and answers by this runtime, after a first run that captures its graphs."""
    llm = LLM(engine, speculation, RuntimeConfig(chunk_size=chunk_size, result_lag=RESULT_LAG))
    prompts = [list(prompt) for prompt in traffic.prompts]
    llm.generate(prompts, traffic.params)
    finish()
    started = time.perf_counter()
    outputs = llm.generate(prompts, traffic.params)
    seconds = time.perf_counter() - started
    return _window(traffic, sum(len(output.outputs[0].token_ids) for output in outputs), seconds)


def answer_by_transformers(engine: LoadedEngine, traffic: Traffic) -> Window:
    """The same by transformers, which also runs once before."""
    model = hf_llama(engine.config.model, engine.weights)
    model.set_attn_implementation("paged|sdpa")
    wanted = GenerationConfig(
        max_new_tokens=traffic.params.max_tokens, do_sample=False, eos_token_id=-1, pad_token_id=0
    )
    prompts = [list(prompt) for prompt in traffic.prompts]
    model.generate_batch(prompts[:8], generation_config=wanted, progress_bar=False)
    finish()
    started = time.perf_counter()
    outputs = model.generate_batch(prompts, generation_config=wanted, progress_bar=False)
    seconds = time.perf_counter() - started
    return _window(traffic, sum(len(output.generated_tokens) for output in outputs.values()), seconds)


def hf_llama(model: ModelConfig, weights: Mapping[str, Tensor]) -> LlamaForCausalLM:
    """transformers' model with weights that an engine has fused; on their device, in their type."""
    assert model.family == "llama"
    device, dtype = weights["embedding"].device, weights["embedding"].dtype
    # As a file has it: versions 4 and 5 name the arguments for RoPE differently.
    config = LlamaConfig.from_dict(
        {
            "vocab_size": model.vocab_size,
            "hidden_size": model.hidden_size,
            "intermediate_size": model.intermediate_size,
            "num_hidden_layers": model.num_layers,
            "num_attention_heads": model.num_heads,
            "num_key_value_heads": model.num_kv_heads,
            "head_dim": model.head_dim,
            "rms_norm_eps": model.rms_norm_eps,
            "rope_theta": model.rope_theta,
            "max_position_embeddings": model.max_position_embeddings,
            "tie_word_embeddings": model.tie_word_embeddings,
        }
    )
    with device:
        made: LlamaForCausalLM = LlamaForCausalLM(config)
    made = made.to(device=device, dtype=dtype)  # type: ignore[call-arg]
    state = {
        source: part
        for name, sources in fused_sources(model).items()
        for source, part in zip(sources, weights[name].split([shape[0] for shape in sources.values()]), strict=True)
    }
    missing, unexpected = made.load_state_dict(state, strict=False)
    assert not unexpected, unexpected
    assert [name for name in missing if name != "lm_head.weight"] == [], missing
    made.eval()
    return made


def _window(traffic: Traffic, num_tokens: int, seconds: float) -> Window:
    """One step: all of it."""
    lengths = [len(prompt) + traffic.params.max_tokens / 2 for prompt in traffic.prompts]
    return Window(len(lengths), 1, num_tokens, seconds, sum(lengths) / len(lengths))
