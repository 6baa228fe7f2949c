"""Architectures of published models, by name: sections to start from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from scaling.core import ConfigError, Problem

Section = Mapping[str, Any]

_GATED: Final[Section] = {
    "norm_type": "rms",
    "mlp_type": "swiglu",
    "attention_bias": False,
    "mlp_bias": False,
    "weight_tying": False,
    "precision": "bfloat16",
}
"""The settings that Llama (arXiv:2302.13971) and most models after it have in common."""

_GEMMA_2: Final[Section] = {
    **_GATED,
    "mlp_type": "geglu",
    "activation_function": "gelu_tanh",
    "norm_placement": "sandwich",
    "layernorm": {"layernorm_epsilon": 1e-6, "weight_offset": 1},
    "attention_kinds": {"sliding": {"window": 4096}, "full": {}},
    "attention_pattern": ["sliding", "full"],
    "attention_score_cap": 50.0,
    "logit_cap": 30.0,
    "weight_tying": True,
}

_PYTHIA: Final[Section] = {
    "parallel_residual": True,
    "rotary_percentage": 0.25,
    "weight_tying": False,
    "sequence_length": 2048,
    "precision": "float16",
}


def _sizes(hidden: int, layers: int, heads: int, kv_heads: int, mlp: int, vocabulary: int, length: int) -> Section:
    return {
        "hidden_size": hidden,
        "num_layers": layers,
        "num_attention_heads": heads,
        "attention_num_kv_heads": kv_heads,
        "mlp_size": mlp,
        "vocab_size": vocabulary,
        "sequence_length": length,
    }


def _llama3(factor: float) -> Section:
    rotary = {"type": "llama3", "factor": factor, "low_freq_factor": 1, "high_freq_factor": 4, "trained_length": 8192}
    return {"rotary_embedding_base": 500000, "rotary": rotary}


def _epsilon(value: float) -> Section:
    return {"layernorm": {"layernorm_epsilon": value}}


def _qwen3(sizes: Section) -> Section:
    own = {"attention_head_size": 128, "key_query_norm": "per_head", "rotary_embedding_base": 1000000}
    return {**_GATED, **_epsilon(1e-6), **sizes, **own}


def _qwen2(sizes: Section) -> Section:
    return {**_GATED, **_epsilon(1e-6), **sizes, "attention_qkv_bias": True, "rotary_embedding_base": 1000000}


def _gemma2(hidden: int, layers: int, heads: int, kv_heads: int, head_size: int, mlp: int, scaled_by: int) -> Section:
    return {
        **_GEMMA_2,
        **_sizes(hidden, layers, heads, kv_heads, mlp, 256000, 8192),
        "attention_head_size": head_size,
        "attention_score_scale": scaled_by**-0.5,
        "embedding_scale": math.sqrt(hidden),
    }


def _pythia(hidden: int, layers: int, heads: int, vocabulary: int) -> Section:
    sizes = {"hidden_size": hidden, "num_layers": layers, "num_attention_heads": heads, "vocab_size": vocabulary}
    return {**_PYTHIA, **sizes}


def _olmo2(sizes: Section) -> Section:
    own = {"norm_placement": "post", "key_query_norm": "all_heads", "rotary_embedding_base": 500000}
    return {**_GATED, **_epsilon(1e-6), **sizes, **own}


_TIED: Final[Section] = {"weight_tying": True}

PRESETS: Final[Mapping[str, Section]] = {
    "llama2-7b": {**_GATED, **_sizes(4096, 32, 32, 32, 11008, 32000, 4096)},
    "llama2-13b": {**_GATED, **_sizes(5120, 40, 40, 40, 13824, 32000, 4096)},
    "llama2-70b": {**_GATED, **_sizes(8192, 80, 64, 8, 28672, 32000, 4096)},
    "llama3-8b": {**_GATED, **_sizes(4096, 32, 32, 8, 14336, 128256, 8192), "rotary_embedding_base": 500000},
    "llama3-70b": {**_GATED, **_sizes(8192, 80, 64, 8, 28672, 128256, 8192), "rotary_embedding_base": 500000},
    "llama3.1-8b": {**_GATED, **_sizes(4096, 32, 32, 8, 14336, 128256, 131072), **_llama3(8)},
    "llama3.1-70b": {**_GATED, **_sizes(8192, 80, 64, 8, 28672, 128256, 131072), **_llama3(8)},
    "llama3.2-1b": {**_GATED, **_sizes(2048, 16, 32, 8, 8192, 128256, 131072), **_llama3(32), **_TIED},
    "llama3.2-3b": {**_GATED, **_sizes(3072, 28, 24, 8, 8192, 128256, 131072), **_llama3(32), **_TIED},
    "mistral-7b": {
        **_GATED,
        **_sizes(4096, 32, 32, 8, 14336, 32000, 32768),
        "attention_kinds": {"sliding": {"window": 4096}},
        "attention_pattern": ["sliding"],
    },
    "qwen2.5-0.5b": {**_qwen2(_sizes(896, 24, 14, 2, 4864, 151936, 32768)), **_TIED},
    "qwen2.5-7b": _qwen2(_sizes(3584, 28, 28, 4, 18944, 152064, 32768)),
    "qwen3-0.6b": {**_qwen3(_sizes(1024, 28, 16, 8, 3072, 151936, 40960)), **_TIED},
    "qwen3-8b": _qwen3(_sizes(4096, 36, 32, 8, 12288, 151936, 40960)),
    "gemma2-2b": _gemma2(2304, 26, 8, 4, 256, 9216, scaled_by=256),
    "gemma2-9b": _gemma2(3584, 42, 16, 8, 256, 14336, scaled_by=256),
    "gemma2-27b": _gemma2(4608, 46, 32, 16, 128, 36864, scaled_by=144),
    "pythia-160m": _pythia(768, 12, 12, 50304),
    "pythia-1.4b": _pythia(2048, 24, 16, 50304),
    "pythia-6.9b": _pythia(4096, 32, 32, 50432),
    "olmo2-7b": _olmo2(_sizes(4096, 32, 32, 32, 11008, 100352, 4096)),
    "olmo2-13b": _olmo2(_sizes(5120, 40, 40, 40, 13824, 100352, 4096)),
    "smollm2-135m": {**_GATED, **_sizes(576, 30, 9, 3, 1536, 49152, 8192), **_TIED, "rotary_embedding_base": 100000},
    "smollm2-360m": {**_GATED, **_sizes(960, 32, 15, 5, 2560, 49152, 8192), **_TIED, "rotary_embedding_base": 100000},
    "smollm2-1.7b": {**_GATED, **_sizes(2048, 24, 32, 32, 8192, 49152, 8192), **_TIED, "rotary_embedding_base": 130000},
    "smollm3-3b": {
        **_GATED,
        **_epsilon(1e-6),
        **_TIED,
        **_sizes(2048, 36, 16, 4, 11008, 128256, 65536),
        "rotary_embedding_base": 5000000,
        "attention_kinds": {"rotary": {}, "nope": {"rotary": {"type": "none"}}},
        "attention_pattern": ["rotary", "rotary", "rotary", "nope"],
    },
}
"""Sections of `transformer_architecture`."""


def preset(name: str) -> Section:
    """Return the section of a published model; for another name, raise `ConfigError` with the known names."""
    if name not in PRESETS:
        raise ConfigError(Problem("preset", f"is {name!r}, but must be one of {', '.join(PRESETS)}"))
    return PRESETS[name]
