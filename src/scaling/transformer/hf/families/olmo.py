"""OLMo 1, 2 and 3."""

from __future__ import annotations

from typing import Final

from scaling.transformer.hf.families.shared import (
    ATTENTION_BIAS,
    ATTENTION_DROPOUT,
    RMS,
    UNUSUAL_HEAD_SIZE,
    epsilon,
    gated,
    kv_heads,
    llama_names,
    sizes,
    tied,
)
from scaling.transformer.hf.family import Family
from scaling.transformer.hf.fields import Field, Part
from scaling.transformer.hf.layer_types import LayerTypes
from scaling.transformer.hf.rope import Rope, RopeByKind
from scaling.transformer.hf.tensors import Row

COMMON: Final[tuple[Part, ...]] = (
    *sizes(vocabulary=50304, hidden=4096, width=11008, layers=32, heads=32, length=2048),
    kv_heads(None),
    UNUSUAL_HEAD_SIZE,
    ATTENTION_BIAS,
    tied(False),
    gated("hidden_act", "silu"),
    ATTENTION_DROPOUT,
)

OLMO: Final = Family(
    model_type="olmo",
    architecture="OlmoForCausalLM",
    parts=(*COMMON, Rope(), Field("clip_qkv", float, None, "attention_qkv_clip", nullable=True, above=0)),
    fixed={
        "norm_type": "layernorm",
        "layernorm.layernorm_epsilon": 1e-5,
        "layernorm.weight": False,
        "layernorm.bias": False,
        "relative_position_embedding_type": "rotary",
        "mlp_bias": False,
    },
    table=llama_names(),
)

FIXED: Final = {**RMS, "mlp_bias": False, "norm_placement": "post", "key_query_norm": "all_heads"}

# In Llama, the name `post_attention_layernorm` means another norm, the one before the MLP.
NAMES: Final = llama_names(
    between=(
        Row("post_attention_layernorm", ["attention_output_layernorm"]),
        Row("post_feedforward_layernorm", ["mlp_output_layernorm"]),
    )
)

OLMO2: Final = Family(
    model_type="olmo2",
    architecture="Olmo2ForCausalLM",
    parts=(*COMMON, epsilon("rms_norm_eps", 1e-5), Rope()),
    fixed=FIXED,
    table=NAMES,
)

OLMO3_LAYERS: Final = LayerTypes(lambda config, layer: (layer + 1) % 4 != 0)

OLMO3: Final = Family(
    model_type="olmo3",
    architecture="Olmo3ForCausalLM",
    parts=(
        *COMMON,
        epsilon("rms_norm_eps", 1e-5),
        # In older files, rope_theta is the base of full layers only, and sliding layers have the default.
        RopeByKind(OLMO3_LAYERS, full=500000.0, sliding=500000.0),
        OLMO3_LAYERS,
    ),
    fixed=FIXED,
    table=NAMES,
)
