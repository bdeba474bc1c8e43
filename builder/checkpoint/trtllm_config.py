"""config.json of a TensorRT-LLM checkpoint, as its convert_checkpoint.py for Llama and Qwen wrote it up to 1.0.

Defaults of keys that a file leaves out are those of TensorRT-LLM's config classes.
"""

from __future__ import annotations

from dataclasses import dataclass

from sparsespec.builder.checkpoint.hf_json import JsonFile
from sparsespec.builder.checkpoint.hf_rope import parse_rope
from sparsespec.builder.checkpoint.trtllm_layout import RankLayout
from sparsespec.builder.config_io import check_range, shown
from sparsespec.builder.model_config import Family, ModelConfig

_FAMILIES: dict[str, Family] = {
    "LlamaForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
_QWEN_TYPES: dict[str, Family] = {"qwen2": "qwen2", "qwen3": "qwen3"}
# Of other models, or of a changed one.
_FOREIGN_KEYS = (
    "attn_logit_softcapping",
    "clip_qkv",
    "final_logit_softcapping",
    "mup_width_multiplier",
    "query_pre_attn_scalar",
    "rope_local_base_freq",
    "sliding_window",
    "sliding_window_pattern",
)


@dataclass(frozen=True)
class TrtllmConfig:
    """What config.json says. Tied embeddings and the end of a text it says only in part."""

    model: ModelConfig
    layout: RankLayout
    embedding_dim: int | None  # along which the ranks share the embedding; None: every rank has all of it
    tied: bool | None  # None: nothing is said of it
    fp8_kv_cache: bool  # whether there are scales of one


def read_trtllm_config(config: JsonFile) -> TrtllmConfig:
    """Raises CheckpointError for a model or an option that is not supported, or values that do not fit."""
    if "pretrained_config" in config.values:
        raise config.error("a built TensorRT-LLM engine; expected the checkpoint that it was built from")
    family = _family(config)
    _refuse_unsupported(config, family)
    model = _model_config(config, family)
    layout = _layout(config, model)
    return TrtllmConfig(model, layout, _embedding_dim(config, model, layout), _tied(config), _fp8_kv_cache(config))


def _family(config: JsonFile) -> Family:
    architecture, qwen_type = config.get("architecture", ""), config.get("qwen_type", "")
    # An older name for every Qwen.
    if architecture == "QWenForCausalLM":
        if qwen_type not in _QWEN_TYPES:
            raise config.error(f"qwen_type: expected one of {', '.join(_QWEN_TYPES)}, found {qwen_type!r:.200}")
        return _QWEN_TYPES[qwen_type]
    if architecture not in _FAMILIES:
        expected = ", ".join((*_FAMILIES, "QWenForCausalLM"))
        raise config.error(f"architecture: expected one of {expected}, found {architecture!r:.200}")
    family = _FAMILIES[architecture]
    if qwen_type not in ("", family):
        raise config.error(f"qwen_type: expected {family!r} for {architecture}, found {qwen_type!r:.200}")
    return family


def _refuse_unsupported(config: JsonFile, family: Family) -> None:
    quantization, moe, mapping = config.section("quantization"), config.section("moe"), config.section("mapping")
    qkv_bias, qk_norm = family == "qwen2", family == "qwen3"
    expectations: tuple[tuple[JsonFile, str, object, object], ...] = (
        (quantization, "quant_algo", quantization.get("quant_algo", "none"), "none"),
        (moe, "num_experts", moe.get("num_experts", 0), 0),
        (mapping, "auto_parallel", mapping.get("auto_parallel", False), False),
        (config, "moe_num_experts", config.get("moe_num_experts", 0), 0),
        (config, "hidden_act", config.get("hidden_act", "gelu"), "silu"),
        (config, "position_embedding_type", config.get("position_embedding_type", ""), "rope_gpt_neox"),
        (config, "rotary_pct", config.get("rotary_pct", 1.0), 1.0),
        (config, "attn_bias", config.get("attn_bias", qkv_bias), qkv_bias),
        (config, "mlp_bias", config.get("mlp_bias", False), False),
        # False for Qwen3 too, whose norms TensorRT-LLM derives from its name.
        (config, "qk_layernorm", config.get("qk_layernorm", False) and not qk_norm, False),
        (config, "use_logn_attn", config.get("use_logn_attn", False), False),
        (config, "residual_mlp", config.get("residual_mlp", False), False),
        (config, "fc_after_embed", config.get("fc_after_embed", False), False),
        (config, "use_input_layernorm_in_first_layer", config.get("use_input_layernorm_in_first_layer", True), True),
        (config, "use_last_layernorm", config.get("use_last_layernorm", True), True),
        (config, "embedding_multiplier", config.get("embedding_multiplier", 1.0), 1.0),
        (config, "attention_multiplier", config.get("attention_multiplier", 1.0), 1.0),
        (config, "residual_multiplier", config.get("residual_multiplier", 1.0), 1.0),
        (config, "output_multiplier_scale", config.get("output_multiplier_scale", 1.0), 1.0),
        (config, "is_pruned", config.get("is_pruned", False), False),
        *((config, key, config.values.get(key), None) for key in _FOREIGN_KEYS),
    )
    for place, key, found, expected in expectations:
        if found != expected:
            raise place.error(f"{key}: only {expected!r} is supported, found {found!r:.200}")


def _model_config(config: JsonFile, family: Family) -> ModelConfig:
    hidden_size, num_heads = config.require_int("hidden_size"), config.require_int("num_attention_heads")
    head_dim = config.get("head_size", hidden_size // max(num_heads, 1))
    rotary_dim = config.get("rotary_embedding_dim", head_dim)
    if rotary_dim != head_dim:
        raise config.error(f"rotary_embedding_dim: expected head_size {shown(head_dim)}, found {shown(rotary_dim)}")
    max_position_embeddings = config.require_int("max_position_embeddings")
    # Hugging Face's own section under another name.
    scaling = config.section("rotary_scaling")
    original = scaling.get("original_max_position_embeddings", max_position_embeddings)
    rope = parse_rope(scaling, config.get("rotary_base", 10000.0), original)
    with config.naming():
        return ModelConfig(
            family=family,
            vocab_size=config.require_int("vocab_size"),
            hidden_size=hidden_size,
            intermediate_size=config.get("intermediate_size", 4 * hidden_size),
            num_layers=config.require_int("num_hidden_layers"),
            num_heads=num_heads,
            num_kv_heads=config.get("num_key_value_heads", num_heads),
            head_dim=head_dim,
            rms_norm_eps=config.get("norm_epsilon", 1e-5),
            rope_theta=rope.theta,
            max_position_embeddings=max_position_embeddings,
            tie_word_embeddings=False,
            eos_token_ids=(),
            rope_scaling=rope.scaling,
        )


def _layout(config: JsonFile, model: ModelConfig) -> RankLayout:
    mapping = config.section("mapping")
    tp_size, pp_size, cp_size = (mapping.get(key, 1) for key in ("tp_size", "pp_size", "cp_size"))
    with mapping.naming():
        check_range("tp_size", tp_size, least=1)
        check_range("cp_size", cp_size, least=1)
        check_range("pp_size", pp_size, least=1, most=model.num_layers)
    # Ranks that differ in their part of a text only share one file.
    product = tp_size * pp_size * cp_size
    world_size = mapping.get("world_size", product)
    if world_size != product:
        raise mapping.error(f"world_size: expected tp_size * pp_size * cp_size = {product}, found {shown(world_size)}")
    sizes = {"num_attention_heads": model.num_heads, "intermediate_size": model.intermediate_size}
    for key, size in sizes.items():
        if size % tp_size:
            raise config.error(f"{key}: expected a multiple of mapping.tp_size {tp_size}, found {size}")
    if model.num_kv_heads % tp_size and tp_size % model.num_kv_heads:
        raise config.error(
            f"num_key_value_heads: expected a multiple or a divisor of mapping.tp_size {tp_size}, "
            f"found {model.num_kv_heads}"
        )
    return RankLayout(tp_size, pp_size, model.num_layers)


def _embedding_dim(config: JsonFile, model: ModelConfig, layout: RankLayout) -> int | None:
    if not config.get("use_parallel_embedding", False):
        return None
    dim = config.get("embedding_sharding_dim", 0)
    if dim not in (0, 1):
        raise config.error(f"embedding_sharding_dim: expected 0 or 1, found {shown(dim)}")
    if dim == 1 and model.hidden_size % layout.tp_size:
        raise config.error(
            f"hidden_size: expected a multiple of mapping.tp_size {layout.tp_size}, found {model.hidden_size}"
        )
    return dim


def _tied(config: JsonFile) -> bool | None:
    # Versions that knew no other word for it wrote this one.
    if config.get("share_embedding_table", False):
        return True
    said = config.values.get("tie_word_embeddings") is not None
    return config.get("tie_word_embeddings", False) if said else None


def _fp8_kv_cache(config: JsonFile) -> bool:
    quantization = config.section("quantization")
    algo = quantization.get("kv_cache_quant_algo", "none")
    if algo not in ("none", "FP8"):
        raise quantization.error(f"kv_cache_quant_algo: only 'FP8' is supported, found {algo!r:.200}")
    return algo == "FP8"
