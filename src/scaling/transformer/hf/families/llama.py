"""Llama, and the families that differ from it in a few fields."""

from __future__ import annotations

import math
from typing import Any, Final

from scaling.transformer.hf.families.shared import (
    ATTENTION_BIAS,
    ATTENTION_DROPOUT,
    MLP_BIAS,
    NO_BIAS,
    RMS,
    ROTARY_FREQUENCIES,
    UNUSUAL_HEAD_SIZE,
    dropout,
    epsilon,
    gated,
    head_size,
    kv_heads,
    llama_names,
    sizes,
    tied,
)
from scaling.transformer.hf.family import Family
from scaling.transformer.hf.fields import Computed, Field, Only, Ours, simplest
from scaling.transformer.hf.inert import NOT_BUILT
from scaling.transformer.hf.layer_types import LayerTypes, NoRope, OneWindow
from scaling.transformer.hf.rope import Rope
from scaling.transformer.hf.tensors import Row

COMMON: Final = (gated("hidden_act", "silu"), ATTENTION_DROPOUT)

LLAMA: Final = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    parts=(
        *sizes(vocabulary=32000, hidden=4096, width=11008, layers=32, heads=32, length=2048),
        kv_heads(None),
        head_size(),
        epsilon("rms_norm_eps", 1e-6),
        ATTENTION_BIAS,
        MLP_BIAS,
        tied(False),
        Rope(),
        *COMMON,
    ),
    fixed=RMS,
    table=llama_names(),
    inert_names=frozenset({"max_sequence_length"}),
    ignored=(ROTARY_FREQUENCIES,),
)

SMOLLM3: Final = Family(
    model_type="smollm3",
    architecture="SmolLM3ForCausalLM",
    parts=(
        *sizes(vocabulary=128256, hidden=2048, width=11008, layers=36, heads=16, length=32768),
        kv_heads(4),
        UNUSUAL_HEAD_SIZE,
        epsilon("rms_norm_eps", 1e-6),
        ATTENTION_BIAS,
        MLP_BIAS,
        tied(True),
        Rope(base=2000000.0),
        NoRope(),
        LayerTypes(lambda config, layer: not NoRope().of(config)[layer], default=None, switch=True),
        *COMMON,
    ),
    fixed=RMS,
    table=llama_names(),
    inert_names=frozenset({"max_window_layers"}),
)

MISTRAL_SIZES: Final = sizes(vocabulary=32000, hidden=4096, width=14336, layers=32, heads=32, length=131072)

MISTRAL: Final = Family(
    model_type="mistral",
    architecture="MistralForCausalLM",
    parts=(
        *MISTRAL_SIZES,
        kv_heads(8),
        head_size(),
        epsilon("rms_norm_eps", 1e-6),
        tied(False),
        Rope(),
        OneWindow(4096),
        *COMMON,
    ),
    fixed={**RMS, **NO_BIAS},
    table=llama_names(),
    ignored=(ROTARY_FREQUENCIES,),
)

MINISTRAL: Final = Family(
    model_type="ministral",
    architecture="MinistralForCausalLM",
    parts=(
        *MISTRAL_SIZES,
        kv_heads(8),
        head_size(),
        epsilon("rms_norm_eps", 1e-6),
        tied(False),
        Rope(),
        LayerTypes(lambda config, layer: True),
        *COMMON,
    ),
    fixed={**RMS, **NO_BIAS},
    table=llama_names(),
)

QWEN_SIZES: Final = sizes(vocabulary=151936, hidden=4096, width=22016, layers=32, heads=32, length=32768)

QWEN_WINDOWS: Final = LayerTypes(
    lambda config, layer: bool(layer >= config["max_window_layers"]), switch=True, others={"max_window_layers": 28}
)

QWEN2: Final = Family(
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    parts=(
        *QWEN_SIZES,
        kv_heads(32),
        UNUSUAL_HEAD_SIZE,
        epsilon("rms_norm_eps", 1e-6),
        tied(False),
        Rope(),
        QWEN_WINDOWS,
        *COMMON,
    ),
    fixed={**RMS, **NO_BIAS, "attention_qkv_bias": True},
    table=llama_names(),
    ignored=(ROTARY_FREQUENCIES,),
)

QWEN3: Final = Family(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    parts=(
        *QWEN_SIZES,
        kv_heads(32),
        head_size(128),
        epsilon("rms_norm_eps", 1e-6),
        ATTENTION_BIAS,
        tied(False),
        Rope(),
        QWEN_WINDOWS,
        *COMMON,
    ),
    fixed={**RMS, "mlp_bias": False, "key_query_norm": "per_head"},
    table=llama_names(),
)


def _score_scale(ours: Ours) -> dict[str, Any]:
    scale = ours["attention_score_scale"]
    return {"attention_multiplier": 1.0 / math.sqrt(ours["attention_head_size"]) if scale is None else scale}


GRANITE_SCALE: Final = Computed(
    {"attention_multiplier": float},
    lambda config: {"attention_score_scale": config.get("attention_multiplier", 1.0)},
    _score_scale,
)
"""Factor of the scores, in place of 1 / sqrt(head size)."""

GRANITE: Final = Family(
    model_type="granite",
    architecture="GraniteForCausalLM",
    parts=(
        *sizes(vocabulary=32000, hidden=4096, width=11008, layers=32, heads=32, length=2048),
        kv_heads(None),
        UNUSUAL_HEAD_SIZE,
        epsilon("rms_norm_eps", 1e-6),
        ATTENTION_BIAS,
        MLP_BIAS,
        tied(False),
        Rope(),
        Field("embedding_multiplier", float, 1.0, "embedding_scale", above=0),
        Field("residual_multiplier", float, 1.0, "residual_scale", above=0),
        GRANITE_SCALE,
        Field(
            "logits_scaling",
            float,
            1.0,
            "logit_scale",
            above=0,
            to_ours=lambda divisor: 1.0 / divisor,
            to_theirs=lambda scale: simplest(scale, made_by=lambda y: 1.0 / y, undone_by=lambda x: 1.0 / x),
        ),
        *COMMON,
    ),
    fixed=RMS,
    table=llama_names(),
    scales_embedding=False,
)

BIASES_OF_PHI: Final = ("attention_bias", "mlp_bias", "lm_head_bias")
FACTORS_OF_PHI: Final = ("full_attn_mod", "interpolate_factor")

PHI3: Final = Family(
    model_type="phi3",
    architecture="Phi3ForCausalLM",
    parts=(
        *sizes(vocabulary=32064, hidden=3072, width=8192, layers=32, heads=32, length=4096),
        kv_heads(None),
        UNUSUAL_HEAD_SIZE,
        epsilon("rms_norm_eps", 1e-5),
        tied(False),
        Rope(
            partial=1.0,
            length_name="original_max_position_embeddings",
            length=4096,
            renamed={"su": "longrope", "yarn": "longrope"},
        ),
        OneWindow(None),
        dropout("resid_pdrop", ["dropout_after_attention", "dropout_after_mlp"]),
        # Fields of the code that came with the first files; the present class does not know them.
        *(Only(name, (None, False), f"there are biases; {NOT_BUILT}") for name in BIASES_OF_PHI),
        *(Only(name, (None, 1), f"not all layers attend alike; {NOT_BUILT}") for name in FACTORS_OF_PHI),
        *COMMON,
    ),
    fixed={**RMS, **NO_BIAS},
    table=llama_names(
        qkv=(Row("self_attn.qkv_proj", ["self_attention.query", "self_attention.key", "self_attention.value"]),),
        gate_and_up=(Row("mlp.gate_up_proj", ["mlp.dense_in", "mlp.siglu_weight"]),),
    ),
    inert_names=frozenset({"embd_pdrop"}),
    ignored=(ROTARY_FREQUENCIES,),
)
