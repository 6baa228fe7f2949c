"""Tiny language models that together use every option of the architecture, and layouts that could part them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.contract.layouts import LAYERS, SELECTIVE, SMALL_BUCKETS, SP, LayoutCase

_SIZES = {"hidden_size": 32, "num_attention_heads": 8, "sequence_length": 16, "precision": "float64", "num_layers": 2}

FLOAT8_SECTIONS = (
    "fp8_config_attention",
    "fp8_config_attention_dense_out",
    "fp8_config_mlp",
    "fp8_config_mlp_dense_out",
)
FLOAT8_BY_ROWS: Mapping[str, Any] = {
    name: {"granularity": "row", "dtypes_grad_weight": None} for name in FLOAT8_SECTIONS
}

OPTION_MODELS: dict[str, Mapping[str, Any]] = {
    # Norms around both branches, capped scores and logits, windows in every other layer, heads of a size of their own.
    "sandwich": {
        **_SIZES,
        "vocab_size": 67,
        "attention_head_size": 6,
        "attention_num_kv_heads": 2,
        "attention_bias": False,
        "attention_score_scale": 0.3,
        "attention_score_cap": 2.0,
        "attention_kinds": {
            "local": {"window": 5, "rotary": {"type": "llama3", "base": 100, "factor": 8, "trained_length": 12}},
            "full": {"rotary": {"type": "linear", "factor": 8}},
        },
        "attention_pattern": ["local", "full"],
        "key_query_norm": "per_head",
        "norm_type": "rms",
        "norm_placement": "sandwich",
        "layernorm": {"weight_offset": 1},
        "mlp_type": "geglu",
        "activation_function": "gelu_tanh",
        "mlp_size": 44,
        "mlp_bias": False,
        "embedding_scale": 5.65,
        "logit_cap": 1.5,
        "weight_tying": True,
    },
    # Norms behind the branches and over all heads, clipped projections, a layer without positions, z-loss.
    "post": {
        **_SIZES,
        "vocab_size": 50,
        "attention_num_kv_heads": 2,
        "attention_qkv_clip": 0.4,
        "attention_kinds": {"near": {"rotary": {"type": "none"}}, "far": {"window": 7}},
        "attention_pattern": ["near", "far"],
        "rotary": {"type": "yarn", "factor": 4, "trained_length": 8},
        "rotary_embedding_base": 500.5,
        "key_query_norm": "all_heads",
        "norm_type": "rms",
        "norm_placement": "post",
        "mlp_type": "swiglu",
        "mlp_factor": 2.3,
        "mlp_size_multiple_of": 8,
        "initialization": {"scheme": "depth_scaled", "std": 0.2},
        "weight_tying": False,
    },
    # Parallel branches with two norms, a window for some heads, scaled branches, dropout.
    "parallel": {
        **_SIZES,
        "vocab_size": 61,
        "num_local_attention_heads": 3,
        "local_attention_window_size": 4,
        "rotary": {"type": "dynamic", "factor": 2, "trained_length": 8},
        "attention_head_size": 8,
        "rotary_percentage": 0.5,
        "parallel_residual": True,
        "residual_scale": 0.3,
        "mlp_factor": 2.0,
        "dropout_embedding": 0.1,
        "dropout_attention_probs": 0.1,
        "dropout_after_attention": 0.1,
        "dropout_after_mlp": 0.1,
        "weight_tying": False,
    },
    # Parallel branches with one norm, biases by part, a bias in the head, logits in chunks.
    "one norm": {
        **_SIZES,
        "vocab_size": 50,
        "attention_num_kv_heads": 1,
        "attention_qkv_bias": True,
        "attention_dense_bias": False,
        "rotary": {"type": "longrope", "short_factor": [1, 2], "long_factor": [1.5, 4], "trained_length": 8},
        "parallel_residual": True,
        "parallel_residual_norms": 1,
        "layernorm": {"bias": False},
        "activation_function": "squared_relu",
        "mlp_factor": 2.0,
        "logit_scale": 0.25,
        "lm_head_bias": True,
        "weight_tying": True,
    },
    # Products in 8 bits, with scales that no layout changes: of rows, and none over the tokens of a micro-batch.
    "float8": {
        **_SIZES,
        "vocab_size": 50,
        "attention_qkv_in_one": True,
        "mlp_type": "swiglu",
        "mlp_factor": 2.0,
        "norm_type": "rms",
        "weight_tying": False,
        **FLOAT8_BY_ROWS,
    },
    # Norms behind the sums, learned positions, norms without weights.
    "after sum": {
        **_SIZES,
        "vocab_size": 61,
        "relative_position_embedding_type": "none",
        "absolute_positions": 17,
        "norm_placement": "after_sum",
        "layernorm": {"weight": False, "bias": False},
        "activation_function": "relu",
        "mlp_factor": 2.0,
        "weight_tying": False,
    },
}

OPTION_LOSSES: dict[str, Mapping[str, Any]] = {"post": {"z_loss": 0.01}, "one norm": {"chunk_size": 7, "z_loss": 0.001}}

OPTION_LAYOUTS = (
    LayoutCase(2, 1, 2, 12),
    LayoutCase(2, 1, 2, 6, {**SP, **LAYERS}, SMALL_BUCKETS),
    LayoutCase(1, 1, 4, 24, SP),
    # Which float64 weights leave in float64; tests/contract/test_precision.py has the layouts in less.
    LayoutCase(
        *(1, 2, 2, 12),
        optimizer={"grad_dtype": "bfloat16", "exp_avg_dtype": "bfloat16", "exp_avg_sq_dtype": "bfloat16"},
    ),
    LayoutCase(2, 1, 2, 12, {**SP, **SELECTIVE}),
)
