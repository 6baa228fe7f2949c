"""Tiny models with every method of fine-tuning on every kind of module, and layouts that have to train them alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scaling.transformer import TransformerConfig
from tests.contract.layouts import LAYERS, SMALL_BUCKETS, SP, STAGES, ZERO, LayoutCase, cut, interleaved
from tests.contract.models import GLOBAL_BATCH, LOSSES, MODELS

ALL_LINEARS = ["query", "key", "value", "dense", "dense_in", "siglu_weight", "dense_out"]

METHODS: dict[str, tuple[str, Mapping[str, Any]]] = {
    # LoRA everywhere, the embedding and a tied head too, ranks by pattern; rows of tokens that both ends share.
    "lora": (
        "llama",
        {
            "lora_config": {
                "parallel_modules": [*ALL_LINEARS, "embedding", "head"],
                "rank": 3,
                "alpha": 6.0,
                "use_rslora": True,
                "dropout": 0.2,
                "bias": True,
                "rank_pattern": {"mlp": 2, r"layers\.2\.": 4},
                "alpha_pattern": {"dense": 3.0},
            },
            "finetunable_token_ids": [65, 3, 40, 17],
        },
    ),
    # LoRA on a fused weight and a head of its own, the base's biases, a soft prompt, rows at both ends.
    "fused": (
        "gpt",
        {
            "lora_config": {
                "name": "one",
                "parallel_modules": ["query", "value", "dense", "dense_in", "dense_out", "head"],
                "rank": 4,
                "alpha": 8.0,
                "dropout": 0.1,
            },
            "bitfit_bias_config": {"name": "biases"},
            "softprompt_config": {"name": "prompt", "n_tokens": 3},
            "finetunable_token_ids": [49, 0, 25],
        },
    ),
    # DoRA everywhere, a tied head too; new biases, bottleneck adapters, a soft prompt.
    "dora": (
        "llama",
        {
            "lora_config": {
                "parallel_modules": [*ALL_LINEARS, "head"],
                "rank": 3,
                "alpha": 6.0,
                "use_dora": True,
                "dropout": 0.2,
            },
            "bitfit_bias_config": {"name": "new", "add_to": ["query", "key", "dense", "dense_out"]},
            "adapter_config": {
                "name": "small",
                "attention_downsampling_factor": 0.25,
                "mlp_downsampling_factor": 0.125,
                "init_std": 0.2,
            },
            "softprompt_config": {"name": "prompt", "n_tokens": 4},
        },
    ),
    # Vectors on outputs and inputs of both kinds of layers, DoRA on a fused weight and a head, nothing dropped there.
    "vectors": (
        "gpt",
        {
            "lora_config": {"parallel_modules": ["key", "dense", "head"], "rank": 3, "alpha": 3.0, "use_dora": True},
            "ia3_config": {
                "parallel_modules": ["query", "key", "value", "dense", "dense_in", "dense_out"],
                "input_modules": ["dense_in", "dense_out"],
            },
        },
    ),
    # One head of keys and values for all ranks; new biases and vectors where ranks share them.
    "shared": (
        "mqa",
        {
            "attention_qkv_in_one": False,
            "attention_bias": False,
            "lora_config": {"parallel_modules": ["key", "value"], "rank": 2, "alpha": 4.0, "bias": True},
            "bitfit_bias_config": {"name": "new", "add_to": ["key", "value"]},
            "ia3_config": {"parallel_modules": ["key", "value", "dense_in"], "input_modules": ["value"]},
        },
    ),
    # One block of three: stages before it need no backward pass, stages behind it train nothing.
    "one block": (
        "llama",
        {"lora_config": {"parallel_modules": [r"layers\.2\."], "rank": 2, "alpha": 4.0, "dropout": 0.1}},
    ),
}
"""Of each: the model that is its base, and what is added."""

Case = LayoutCase
FINETUNING_LAYOUTS: Mapping[str, tuple[LayoutCase, ...]] = {
    "lora": (
        Case(1, 1, 1, 3, LAYERS),
        Case(1, 1, 2, 12),
        Case(1, 1, 2, 24, SP),
        Case(2, 1, 1, 6),
        Case(1, 2, 1, 3, {}, SMALL_BUCKETS),
        Case(1, 1, 4, 24),
        Case(1, 1, 4, 12, SP),
        Case(2, 1, 2, 6, {**SP, **interleaved(2)}),
        Case(3, 1, 1, 8, cut(0, 1, 4, 6)),
        Case(2, 2, 2, 6, SP, ZERO),
        Case(2, 2, 2, 3, {**interleaved(2), **LAYERS}, SMALL_BUCKETS),
        Case(1, 1, 8, 24, SP),
    ),
    "fused": (
        Case(1, 1, 2, 12),
        Case(1, 1, 2, 24, {**SP, **STAGES}),
        Case(2, 1, 1, 6, interleaved(2)),
        Case(1, 1, 4, 24, SP),
        Case(3, 1, 1, 6),
        Case(2, 2, 2, 6, SP, ZERO),
    ),
    "dora": (
        Case(1, 1, 1, 3, STAGES),
        Case(1, 1, 2, 12, LAYERS),
        Case(1, 1, 2, 24, SP),
        Case(1, 2, 1, 4, {}, ZERO),
        Case(1, 1, 4, 12, SP),
        Case(1, 1, 4, 24),
        Case(2, 1, 2, 6, LAYERS),
        Case(2, 2, 2, 6, {**SP, **interleaved(2), **LAYERS}, SMALL_BUCKETS),
    ),
    "vectors": (
        Case(1, 1, 2, 12),
        Case(1, 1, 2, 24, {**SP, **LAYERS}),
        Case(1, 1, 4, 24, SP),
        Case(2, 2, 2, 6, {}, ZERO),
    ),
    "shared": (
        Case(1, 1, 2, 24),
        Case(1, 1, 2, 24, SP),
        Case(1, 1, 4, 24),
        Case(1, 1, 8, 12, SP),
        Case(2, 2, 2, 6, SP, ZERO),
    ),
    "one block": (
        Case(2, 1, 1, 6, cut(0, 2, 6)),
        Case(2, 1, 1, 3, cut(0, 3, 6), ZERO),
        Case(2, 1, 1, 6, {**interleaved(3), **LAYERS}),
        Case(3, 1, 1, 4, cut(0, 2, 3, 6)),
        Case(6, 1, 1, 4, STAGES),
        Case(3, 2, 1, 4, cut(0, 2, 3, 6), SMALL_BUCKETS),
        Case(2, 2, 2, 6, {**SP, **cut(0, 2, 6)}, ZERO),
    ),
}


def finetuned(
    model: str, topology: Mapping[str, Any] | None = None, optimizer: Mapping[str, Any] | None = None, **changes: Any
) -> TransformerConfig:
    """Return the configuration of a model with methods in a layout; `changes` are to the architecture."""
    base, methods = METHODS[model]
    return TransformerConfig.from_dict(
        {
            "topology": {"global_batch_size": GLOBAL_BATCH, "device": "cpu", **(topology or {"micro_batch_size": 24})},
            "transformer_architecture": {**MODELS[base], **methods, **changes},
            "training": {"loss_function_config": LOSSES[base]},
            "learning_rate_scheduler": {"learning_rate": 0.03},
            # Above the rounding: the softmax hardly feels the biases of keys that are not rotated.
            "optimizer": {"gradient_clipping": 1.0, "eps": 1e-5, **(optimizer or {})},
            "trainer": {"seed": 11},
        }
    )
