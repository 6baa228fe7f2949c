"""Fields that published models have in their config.json: read as they are, with the published number of parameters."""

from __future__ import annotations

from math import prod
from typing import Any, Final

import pytest

from scaling.transformer.config.model_plan import plan_of
from scaling.transformer.hf.choose import family_for, family_of
from tests.transformer.hf.in_memory import architecture_of

Config = dict[str, Any]

ABOUT: Final[Config] = {
    "_name_or_path": "x",
    "bos_token_id": 1,
    "eos_token_id": [2, 3],
    "initializer_range": 0.02,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.40.0",
    "use_cache": True,
}


def sizes(hidden: int, layers: int, heads: int, kv_heads: int, width: int, vocabulary: int) -> Config:
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": width,
        "vocab_size": vocabulary,
    }


def neox(hidden: int, layers: int, heads: int, vocabulary: int, **others: Any) -> Config:
    fields = {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads}
    return {
        "model_type": "gpt_neox",
        "intermediate_size": 4 * hidden,
        "vocab_size": vocabulary,
        "rotary_emb_base": 10000,
        "rotary_pct": 0.25,
        "tie_word_embeddings": False,
        **fields,
        **others,
    }


LLAMA3: Final = {
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "max_position_embeddings": 131072,
    "attention_bias": False,
    "mlp_bias": False,
    "pretraining_tp": 1,
}
GEMMA: Final = {
    "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "cache_implementation": "hybrid",
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "sliding_window_size": 4096,
}
QWEN: Final = {
    "max_window_layers": 21,
    "sliding_window": 32768,
    "use_sliding_window": False,
    "use_mrope": False,
    "rope_theta": 1000000.0,
}

PUBLISHED: Final[dict[str, tuple[Config, int]]] = {
    "llama2-7b": (
        {"model_type": "llama", "max_sequence_length": 4096, **sizes(4096, 32, 32, 32, 11008, 32000)},
        6_738_415_616,
    ),
    "llama3.1-8b": ({"model_type": "llama", **LLAMA3, **sizes(4096, 32, 32, 8, 14336, 128256)}, 8_030_261_248),
    "llama3.2-1b": (
        {"model_type": "llama", **LLAMA3, **sizes(2048, 16, 32, 8, 8192, 128256), "tie_word_embeddings": True},
        1_235_814_400,
    ),
    "smollm2-135m": (
        {
            "model_type": "llama",
            "is_llama_config": True,
            "rope_interleaved": False,
            "transformers.js_config": {"kv_cache_dtype": {}},
            "rope_scaling": None,
            "tie_word_embeddings": True,
            **sizes(576, 30, 9, 3, 1536, 49152),
        },
        134_515_008,
    ),
    "smollm3-3b": (
        {
            "model_type": "smollm3",
            "max_window_layers": 28,
            "no_rope_layer_interval": 4,
            "no_rope_layers": [1, 1, 1, 0] * 9,
            "sliding_window": None,
            "use_sliding_window": False,
            "rope_theta": 5000000.0,
            **sizes(2048, 36, 16, 4, 11008, 128256),
        },
        3_075_098_624,
    ),
    "mistral-7b": (
        {"model_type": "mistral", "sliding_window": 4096, "rope_theta": 1e6, **sizes(4096, 32, 32, 8, 14336, 32000)},
        7_241_732_096,
    ),
    "qwen2.5-0.5b": (
        {"model_type": "qwen2", **QWEN, "tie_word_embeddings": True, **sizes(896, 24, 14, 2, 4864, 151936)},
        494_032_768,
    ),
    "qwen2.5-7b": ({"model_type": "qwen2", **QWEN, **sizes(3584, 28, 28, 4, 18944, 152064)}, 7_615_616_512),
    "qwen3-0.6b": (
        {
            "model_type": "qwen3",
            "attention_bias": False,
            "head_dim": 128,
            "tie_word_embeddings": True,
            **sizes(1024, 28, 16, 8, 3072, 151936),
        },
        596_049_920,
    ),
    "gemma2-2b": ({"model_type": "gemma2", **GEMMA, **sizes(2304, 26, 8, 4, 9216, 256000)}, 2_614_341_888),
    "gemma2-27b": (
        {
            "model_type": "gemma2",
            **GEMMA,
            "head_dim": 128,
            "query_pre_attn_scalar": 144,
            **sizes(4608, 46, 32, 16, 36864, 256000),
        },
        27_227_128_320,
    ),
    "pythia-160m": (neox(768, 12, 12, 50304), 162_322_944),
    "gpt-neox-20b": (
        neox(6144, 44, 64, 50432, hidden_act="gelu_fast", hidden_dropout_prob=0, attention_probs_dropout_prob=0),
        20_554_567_680,
    ),
    "olmo2-7b": ({"model_type": "olmo2", **sizes(4096, 32, 32, 32, 11008, 100352)}, 7_298_617_344),
    "phi4-mini": (
        {
            "model_type": "phi3",
            "attention_bias": False,
            "mlp_bias": False,
            "lm_head_bias": False,
            "full_attn_mod": 1,
            "interpolate_factor": 1,
            "partial_rotary_factor": 0.75,
            "max_position_embeddings": 131072,
            "original_max_position_embeddings": 4096,
            "rope_scaling": {"type": "longrope", "long_factor": [1.5] * 48, "short_factor": [1.0] * 48},
            "sliding_window": 262144,
            "embd_pdrop": 0.0,
            "resid_pdrop": 0.0,
            "tie_word_embeddings": True,
            **sizes(3072, 32, 24, 8, 8192, 200064),
        },
        3_836_021_760,
    ),
    "gpt2": (
        {
            "model_type": "gpt2",
            "architectures": ["GPT2LMHeadModel"],
            "n_ctx": 1024,
            "n_special": 0,
            "predict_special_tokens": True,
            "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
        },
        124_439_808,
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_model_is_read_and_has_its_parameters(name: str) -> None:
    fields, parameters = PUBLISHED[name]
    config = {**ABOUT, **fields}
    architecture = architecture_of(config)
    assert sum(prod(one.shape) for one in plan_of(architecture).parameters()) == parameters
    assert family_for(architecture, model_type=config["model_type"]) is family_of(config)
    assert architecture.precision.value == "bfloat16"


@pytest.mark.parametrize(
    "change", [{"lm_head_bias": True}, {"attention_bias": True}, {"mlp_bias": True}, {"interpolate_factor": 2}]
)
def test_fields_that_another_program_would_read_are_refused_unless_they_say_no(change: Config) -> None:
    config = {**PUBLISHED["phi4-mini"][0], **change}
    assert [problem.path for problem in family_of(PUBLISHED["phi4-mini"][0]).problems(config)] == list(change)
