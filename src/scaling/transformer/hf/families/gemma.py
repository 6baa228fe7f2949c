"""Gemma 2, and the text models of Gemma 3."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from scaling.transformer.hf.families.shared import (
    ATTENTION_BIAS,
    ATTENTION_DROPOUT,
    RMS,
    epsilon,
    gated,
    head_size,
    kv_heads,
    llama_names,
    sizes,
    tied,
)
from scaling.transformer.hf.family import Family
from scaling.transformer.hf.fields import Computed, Config, Field, Ours, given, simplest
from scaling.transformer.hf.layer_types import LayerTypes
from scaling.transformer.hf.rope import Rope, RopeByKind
from scaling.transformer.hf.tensors import Row

FIXED: Final = {**RMS, "mlp_bias": False, "norm_placement": "sandwich", "layernorm.weight_offset": 1}

# In Llama, the name `post_attention_layernorm` means another norm, the one before the MLP.
NORMS: Final = (
    Row("post_attention_layernorm", ["attention_output_layernorm"]),
    Row("pre_feedforward_layernorm", ["post_attention_layernorm"]),
    Row("post_feedforward_layernorm", ["mlp_output_layernorm"]),
)


def _scale(scalar: float) -> float:
    return float(scalar**-0.5)


def _read_scale(config: Config) -> dict[str, Any]:
    scalar = given(config, "query_pre_attn_scalar", 256)
    return {"attention_score_scale": None if scalar == config.get("head_dim", 256) else _scale(scalar)}


def _write_scale(ours: Ours) -> dict[str, Any]:
    scale = ours["attention_score_scale"]
    if scale is None:
        return {"query_pre_attn_scalar": ours["attention_head_size"]}
    return {"query_pre_attn_scalar": simplest(scale, made_by=_scale, undone_by=lambda x: float(x**-2))}


SCORE_SCALE: Final = Computed({"query_pre_attn_scalar": int}, _read_scale, _write_scale, above=0)


def embedding_scale(config: Config) -> dict[str, Any]:
    """Return the factor of embeddings."""
    return {"embedding_scale": config["hidden_size"] ** 0.5}


def cap(name: str, default: float | None, key: str) -> Field:
    """Return the field of a cap, which may be null."""
    return Field(name, float, default, key, nullable=True, above=0)


def _slides_but_every(pattern: str) -> Callable[[Config, int], bool]:
    return lambda config, layer: (layer + 1) % config[pattern] != 0


GEMMA2: Final = Family(
    model_type="gemma2",
    architecture="Gemma2ForCausalLM",
    parts=(
        *sizes(vocabulary=256000, hidden=2304, width=9216, layers=26, heads=8, length=8192),
        kv_heads(4),
        head_size(256),
        epsilon("rms_norm_eps", 1e-6),
        ATTENTION_BIAS,
        tied(True),
        Rope(),
        LayerTypes(lambda config, layer: layer % 2 == 0),
        gated("hidden_activation", "gelu_pytorch_tanh"),
        ATTENTION_DROPOUT,
        SCORE_SCALE,
        cap("attn_logit_softcapping", 50.0, "attention_score_cap"),
        cap("final_logit_softcapping", 30.0, "logit_cap"),
    ),
    fixed=FIXED,
    implied=embedding_scale,
    table=llama_names(between=NORMS),
    inert_names=frozenset({"hidden_act", "sliding_window_size"}),
)

GEMMA3_LAYERS: Final = LayerTypes(
    _slides_but_every("sliding_window_pattern"), others={"sliding_window_pattern": 6}, least=1
)

GEMMA3: Final = Family(
    model_type="gemma3_text",
    architecture="Gemma3ForCausalLM",
    parts=(
        *sizes(vocabulary=262208, hidden=2304, width=9216, layers=26, heads=8, length=131072),
        kv_heads(4),
        head_size(256),
        epsilon("rms_norm_eps", 1e-6),
        ATTENTION_BIAS,
        tied(True),
        RopeByKind(GEMMA3_LAYERS, full=1000000.0, sliding=10000.0, sliding_name="rope_local_base_freq"),
        GEMMA3_LAYERS,
        gated("hidden_activation", "gelu_pytorch_tanh"),
        ATTENTION_DROPOUT,
        SCORE_SCALE,
        cap("final_logit_softcapping", None, "logit_cap"),
    ),
    fixed={**FIXED, "key_query_norm": "per_head"},
    implied=embedding_scale,
    table=llama_names(between=NORMS),
    # The cap of the scores is never passed on, and the number of the pattern is read only without its underscore.
    inert_names=frozenset({"hidden_act", "attn_logit_softcapping", "_sliding_window_pattern"}),
)
