"""A tiny model of transformers for each family, with random norms and biases, so that nothing in it is neutral."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from functools import cache
from typing import Any, Final

import torch
import transformers
from torch import Tensor

# Everything bites: an odd vocabulary, windows shorter than the text, a head size that is not hidden / heads where
# the family allows it, rotations that are scaled within the tested lengths.
COMMON: Final = {
    "vocab_size": 131,
    "num_hidden_layers": 4,
    "use_cache": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LLAMA: Final = COMMON | {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-3,
}
WIDE_HEADS: Final = LLAMA | {"head_dim": 16}
LONG: Final = {
    "rope_type": "yarn",
    "rope_theta": 1000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "beta_fast": 4.0,
    "beta_slow": 0.5,
}
LLAMA3: Final = {
    "rope_type": "llama3",
    "rope_theta": 1000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
LONGROPE: Final = {
    "rope_type": "longrope",
    "rope_theta": 1000.0,
    "partial_rotary_factor": 0.75,
    "short_factor": [1.0, 1.1, 1.3, 1.5, 1.7, 1.9],
    "long_factor": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
    "original_max_position_embeddings": 16,
}
LOCAL_AND_GLOBAL: Final = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
    "full_attention": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 8.0},
}
YARN_ON_FULL: Final = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0},
    "full_attention": LONG | {"rope_theta": 5000.0, "attention_factor": 1.2},
}
TWO_TO_ONE: Final = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]

FAMILIES: Final[Mapping[str, tuple[str, Mapping[str, Any]]]] = {
    "llama": ("Llama", WIDE_HEADS | {"rope_parameters": LLAMA3, "attention_bias": True, "mlp_bias": True}),
    "llama_yarn": ("Llama", LLAMA | {"rope_parameters": LONG, "tie_word_embeddings": True}),
    "llama_linear": ("Llama", LLAMA | {"rope_parameters": {"rope_type": "linear", "rope_theta": 50.0, "factor": 4.0}}),
    "llama_dynamic": (
        "Llama",
        LLAMA | {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 50.0, "factor": 4.0}},
    ),
    "smollm3": (
        "SmolLM3",
        LLAMA | {"no_rope_layers": [1, 0, 1, 0], "use_sliding_window": True, "sliding_window": 8},
    ),
    "mistral": ("Mistral", WIDE_HEADS | {"sliding_window": 8}),
    "ministral": ("Ministral", WIDE_HEADS | {"sliding_window": 8, "layer_types": TWO_TO_ONE}),
    "qwen2": ("Qwen2", LLAMA | {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}),
    "qwen2_plain": ("Qwen2", LLAMA | {"tie_word_embeddings": True}),
    "qwen3": (
        "Qwen3",
        WIDE_HEADS | {"attention_bias": True, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 3},
    ),
    "gemma2": (
        "Gemma2",
        WIDE_HEADS
        | {
            "sliding_window": 8,
            "query_pre_attn_scalar": 24,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 30.0,
            "attention_bias": True,
        },
    ),
    "gemma3_text": (
        "Gemma3Text",
        WIDE_HEADS
        | {
            "num_hidden_layers": 6,
            "sliding_window": 8,
            "sliding_window_pattern": 3,
            "query_pre_attn_scalar": 24,
            "rope_parameters": LOCAL_AND_GLOBAL,
        },
    ),
    "gpt_neox": (
        "GPTNeoX",
        COMMON
        | {
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_attention_heads": 4,
            "max_position_embeddings": 64,
            "layer_norm_eps": 1e-3,
        },
    ),
    "gpt_neox_serial": (
        "GPTNeoX",
        COMMON
        | {
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_attention_heads": 4,
            "max_position_embeddings": 64,
            "use_parallel_residual": False,
            "attention_bias": False,
            "tie_word_embeddings": True,
        },
    ),
    "olmo": (
        "Olmo",
        {key: value for key, value in LLAMA.items() if key != "rms_norm_eps"} | {"clip_qkv": 0.5},
    ),
    "olmo2": ("Olmo2", LLAMA | {"attention_bias": True}),
    "olmo3": ("Olmo3", LLAMA | {"sliding_window": 8, "rope_parameters": YARN_ON_FULL}),
    "phi3": (
        "Phi3",
        LLAMA | {"hidden_size": 64, "rope_parameters": LONGROPE, "original_max_position_embeddings": 16},
    ),
    "phi3_window": ("Phi3", LLAMA | {"sliding_window": 8}),
    "granite": (
        "Granite",
        LLAMA
        | {
            "attention_bias": True,
            "mlp_bias": True,
            "embedding_multiplier": 3.0,
            "logits_scaling": 0.5,
            "residual_multiplier": 0.7,
            "attention_multiplier": 0.4,
        },
    ),
    "gpt2": (
        "GPT2",
        COMMON
        | {
            "n_embd": 48,
            "n_head": 4,
            "n_inner": 80,
            "n_positions": 64,
            "layer_norm_epsilon": 1e-3,
            "activation_function": "gelu_new",
        },
    ),
}
"""Name -> (beginning of the names of the classes, fields of the configuration); variants have a longer name."""


def tiny_config(name: str, **changes: Any) -> Any:
    """Return the configuration of a tiny model, an object of transformers."""
    prefix, fields = FAMILIES[name]
    fields = {**fields, **changes}
    text = prefix == "Gemma3Text"
    # It writes into what it is given.
    config = getattr(transformers, f"{prefix}Config")(**deepcopy(dict(fields)))
    config.dtype = torch.float32
    config.architectures = ["Gemma3ForCausalLM" if text else model_class(name).__name__]
    return config


def model_class(name: str) -> Any:
    """Return the class of the models of a family."""
    prefix = FAMILIES[name][0]
    named: dict[str, str] = {"Gemma3Text": "Gemma3ForCausalLM", "GPT2": "GPT2LMHeadModel"}
    return getattr(transformers, named.get(prefix, f"{prefix}ForCausalLM"))


@cache
def tiny_model(name: str) -> Any:
    """Return a float32 model of a family, evaluated eagerly; the same for every caller of a process: change nothing."""
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    model = model_class(name)._from_config(tiny_config(name), attn_implementation="eager", dtype=torch.float32).eval()
    centred = name.startswith("gemma")  # its norms are stored around 0
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.copy_(_values(key, parameter, generator, centred=centred))
    return model.requires_grad_(False)


def _values(key: str, parameter: Tensor, generator: torch.Generator, *, centred: bool) -> Tensor:
    noise = torch.randn(parameter.shape, generator=generator)
    if parameter.dim() == 2:
        return noise * (0.5 if "embed" in key or "wte" in key or "wpe" in key else 1.5 * parameter.shape[-1] ** -0.5)
    if key.endswith("bias"):
        return noise * 0.3
    return noise * 0.3 + (0.0 if centred else 1.0)


def tokens(length: int = 33) -> Tensor:
    """Return random tokens [1, length] of the tiny models' vocabulary."""
    return torch.randint(0, 131, (1, length), generator=torch.Generator().manual_seed(length))
