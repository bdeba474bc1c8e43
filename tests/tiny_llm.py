"""LLMs over tiny random models in memory, for tests of the whole loop."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from transformers import LlamaForCausalLM

from sparsespec.builder.build_config import BuildConfig
from sparsespec.builder.engine_dir import TORCH_DTYPES, EngineConfig
from sparsespec.builder.model_config import ModelConfig
from sparsespec.runtime.config import SpeculationConfig
from sparsespec.runtime.llm import LLM
from sparsespec.runtime.loading import LoadedEngine
from sparsespec.runtime.outputs import RequestOutput
from sparsespec.runtime.sampling_params import SamplingParams
from sparsespec.runtime.text import TextCodec
from tiny_models import random_weights, tiny_model_config, tiny_tokenizer

BUILD = BuildConfig(
    dtype="float64",
    max_batch_size=4,
    max_seq_len=256,
    max_num_tokens=160,
    max_draft_len=16,
    max_budget=256,
    page_size=8,
)


@lru_cache(maxsize=8)
def tiny_engine(seed: int = 0, build: BuildConfig = BUILD, model: ModelConfig | None = None) -> LoadedEngine:
    """An engine with random weights; the same object for the same arguments."""
    shape = tiny_model_config() if model is None else model
    weights = random_weights(shape, TORCH_DTYPES[build.dtype], seed, build.kv_cache_dtype)
    return LoadedEngine(EngineConfig(shape, build), weights, TextCodec(tiny_tokenizer(shape.vocab_size)))


def engine_of(hf_model: LlamaForCausalLM, model: ModelConfig, build: BuildConfig = BUILD) -> LoadedEngine:
    """An engine with the weights of a transformers model, untied, in the model's own dtype."""
    weights = _fused(hf_model.state_dict(), model.num_layers)
    return LoadedEngine(EngineConfig(model, build), weights, TextCodec(tiny_tokenizer(128)))


def random_prompts(lengths: tuple[int, ...], vocab_size: int = 128, seed: int = 1) -> list[tuple[int, ...]]:
    """Prompts of random tokens, none of them special."""
    generator = torch.Generator().manual_seed(seed)
    return [tuple(torch.randint(3, vocab_size, (length,), generator=generator).tolist()) for length in lengths]


def greedy(max_tokens: int, speculate: bool = True) -> SamplingParams:
    """Greedy decoding of exactly max_tokens tokens."""
    return SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True, speculate=speculate)


def ways_to_draft(base: SpeculationConfig) -> dict[str, SpeculationConfig]:
    """Every drafter that plugins serve, and every kind of scores that they leave."""
    return {
        "default": base,
        "exact": replace(base, score_normalizer="exact"),
        "paper": replace(base, recent_share=0.0, moving_share=0.0, max_lookups=0),
        "last": replace(base, moving_from="last"),
        "accepted": replace(base, ranking="accepted"),
        "average": replace(base, ranking="average"),
        "window": replace(base, drafter="window"),
        "ngram": replace(base, drafter="ngram", min_ngram=1),
    }


def first_answers(outputs: list[RequestOutput]) -> list[tuple[int, ...]]:
    """The token ids of each prompt's first answer."""
    return [output.outputs[0].token_ids for output in outputs]


def assert_all_pages_free(llm: LLM) -> None:
    """Nothing holds KV pages once every request has ended."""
    llm.kv_cache.check_integrity()
    assert llm.kv_cache.num_free_pages == llm.kv_cache.num_pages
    assert llm.kv_cache.num_unreserved_pages == llm.kv_cache.num_pages
    assert llm.kv_cache.num_unreserved_host_pages == llm.kv_cache.num_host_pages
    assert llm.kv_cache.num_used_host_pages == 0


@dataclass(frozen=True)
class DraftCounts:
    """Drafts of finished requests."""

    accepted: int
    rejected: int  # verifications that did not accept all their drafts
    longest_context: int  # verified tokens before a block's first draft

    @staticmethod
    def of(outputs: list[RequestOutput]) -> DraftCounts:
        """Count over all answers."""
        checks = [check for output in outputs for answer in output.outputs for check in answer.verifications]
        return DraftCounts(
            accepted=sum(check.num_accepted for check in checks),
            rejected=sum(check.num_accepted < check.num_drafts for check in checks),
            longest_context=max((check.verify_kv_tokens - check.num_drafts - 1 for check in checks), default=0),
        )


def _fused(state: dict[str, torch.Tensor], num_layers: int) -> dict[str, torch.Tensor]:
    weights = {"embedding": state["model.embed_tokens.weight"], "lm_head": state["lm_head.weight"]}
    weights["final_norm"] = state["model.norm.weight"]
    for layer in range(num_layers):
        old, new = f"model.layers.{layer}", f"layers.{layer}"
        weights[f"{new}.qkv"] = torch.cat([state[f"{old}.self_attn.{name}_proj.weight"] for name in "qkv"])
        weights[f"{new}.gate_up"] = torch.cat([state[f"{old}.mlp.{name}_proj.weight"] for name in ("gate", "up")])
        weights[f"{new}.o_proj"] = state[f"{old}.self_attn.o_proj.weight"]
        weights[f"{new}.down_proj"] = state[f"{old}.mlp.down_proj.weight"]
        weights[f"{new}.input_norm"] = state[f"{old}.input_layernorm.weight"]
        weights[f"{new}.post_attention_norm"] = state[f"{old}.post_attention_layernorm.weight"]
    return weights
