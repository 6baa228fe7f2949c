"""Tiny language models that together have every feature a layout can break."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scaling.core import Recipe
from scaling.transformer import TransformerConfig
from scaling.transformer.recipe import recipe_of
from scaling.transformer.verify.synthetic import synthetic_text
from tests.contract.options import OPTION_LOSSES, OPTION_MODELS

GLOBAL_BATCH = 24  # divisible by every data-parallel size up to 8 but 5 and 7
EVALUATION_SAMPLES = 37  # divisible by no global batch or data-parallel size

_GROUPS = [
    {
        "group_name": "matrices",
        "parameters_exclude": ["norm", "bias"],
        "weight_decay": 0.1,
        "learning_rate_scheduler": {"learning_rate": 0.002, "learning_rate_warmup_steps": 2},
    },
    {
        "group_name": "vectors",
        "parameters_include": ["norm|bias"],
        "weight_decay": 0.0,
        "learning_rate_scheduler": {"learning_rate": 0.001},
    },
]
_SIZES = {"hidden_size": 32, "num_attention_heads": 8, "sequence_length": 16, "precision": "float64"}
_DROPOUT = {
    "dropout_embedding": 0.1,
    "dropout_attention_probs": 0.1,
    "dropout_after_attention": 0.1,
    "dropout_after_mlp": 0.1,
}

MODELS: dict[str, Mapping[str, Any]] = {
    # Llama's parts: fewer key-value heads than ranks, tied embeddings, odd numbers of tokens and layers.
    "llama": {
        **_SIZES,
        "vocab_size": 67,
        "num_layers": 3,
        "attention_num_kv_heads": 2,
        "attention_bias": False,
        "mlp_type": "swiglu",
        "mlp_factor": 2.75,
        "mlp_bias": False,
        "norm_type": "rms",
        "rotary_percentage": 0.5,
        "weight_tying": True,
    },
    # GPT's parts: fused query-key-value, biases everywhere, a head of its own with scale and cap, dropout everywhere.
    "gpt": {
        **_SIZES,
        **_DROPOUT,
        "vocab_size": 50,
        "num_layers": 2,
        "weight_tying": False,
        "lm_head_bias": True,
        "logit_scale": 1.5,
        "logit_cap": 4.0,
        "mlp_factor": 2.0,
        "relative_position_embedding_type": "rotary_complex",
    },
    # What is left: one key-value head, normalised queries and keys, attention in both directions, dropout with a tie.
    "mqa": {
        **_SIZES,
        **_DROPOUT,
        "vocab_size": 61,
        "num_layers": 1,
        "attention_num_kv_heads": 1,
        "key_query_norm": True,
        "mlp_factor": 1.0,
        "weight_tying": True,
        "causal": False,
    },
}

LOSSES: dict[str, Mapping[str, Any]] = {
    "llama": {"chunk_size": 7},
    "gpt": {"chunk_size": 10, "z_loss": 0.02},
    "mqa": {"z_loss": 0.01},
}
"""The losses of these models; no chunk divides the tokens of a micro-batch."""


def config_of(
    model: str, topology: Mapping[str, Any] | None = None, optimizer: Mapping[str, Any] | None = None, **changes: Any
) -> TransformerConfig:
    """Return the configuration of a model in a layout; `changes` are to the architecture."""
    return TransformerConfig.from_dict(
        {
            "topology": {"global_batch_size": GLOBAL_BATCH, "device": "cpu", **(topology or {"micro_batch_size": 24})},
            "transformer_architecture": {**(MODELS | OPTION_MODELS)[model], **changes},
            "training": {"loss_function_config": (LOSSES | OPTION_LOSSES).get(model, {})},
            "training_groups": _GROUPS,
            "optimizer": {"gradient_clipping": 1.0, **(optimizer or {})},
            "trainer": {"seed": 11},
        }
    )


def recipe(config: TransformerConfig) -> Recipe:
    """Return what is trained: packed documents, padding, and samples in which nothing counts."""
    return recipe_of(config, synthetic_text(config), synthetic_text(config, EVALUATION_SAMPLES, seed=1))


def without_dropout(
    model: str, topology: Mapping[str, Any] | None = None, optimizer: Mapping[str, Any] | None = None
) -> TransformerConfig:
    """Return the configuration of a model without dropout, which a plain program can follow."""
    return config_of(model, topology, optimizer, **dict.fromkeys(_DROPOUT, 0.0))
