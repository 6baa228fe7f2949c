"""Methods of fine-tuning in a model that has been made small: they fit it, and add to the same kinds of modules."""

from __future__ import annotations

from typing import Any

import pytest

from scaling.transformer import TransformerConfig
from scaling.transformer.config.methods import method_problems, modules_of
from scaling.transformer.config.model_plan import base_plan_of, plan_of
from scaling.transformer.verify.shrink import shrunk

LARGE = {
    "vocab_size": 50000,
    "hidden_size": 1024,
    "num_layers": 24,
    "num_attention_heads": 16,
    "attention_num_kv_heads": 2,
    "attention_qkv_in_one": False,
    "sequence_length": 512,
}


def small(**methods: Any) -> TransformerConfig:
    values = {
        "topology": {
            "model_parallel_size": 2,
            "pipe_parallel_size": 2,
            "data_parallel_size": 2,
            "micro_batch_size": 2,
            "gradient_accumulation_steps": 4,
        },
        "transformer_architecture": {**LARGE, **methods},
    }
    return shrunk(TransformerConfig.from_dict(values))


def kinds_of(config: TransformerConfig) -> set[str]:
    architecture = config.transformer_architecture
    own = {parameter.name for parameter in base_plan_of(architecture).parameters()}
    added = {parameter.name for parameter in plan_of(architecture).parameters()} - own
    return {name.split(".", 2)[2] for name in added}


@pytest.mark.parametrize(
    "methods",
    [
        {"lora_config": {"rank": 64, "parallel_modules": ["query", "head", "embedding", "dense_out"]}},
        {"lora_config": {"rank": 64, "rank_pattern": {r"layers\.22\.": 3, "dense": 5}, "use_dora": True}},
        {"lora_config": {"rank": 8, "parallel_modules": [r"layers\.20\.mlp"], "alpha_pattern": {r"layers\.20\.": 3}}},
        {"ia3_config": {}, "bitfit_bias_config": {"name": "b"}, "finetunable_token_ids": [49999, 3, 51, 99]},
        {"ia3_config": {"parallel_modules": [r"layers\.9\..*key"], "input_modules": []}},
        {"adapter_config": {"name": "a", "attention_downsampling_factor": 1 / 1024, "mlp_downsampling_factor": 0.3125}},
        {"softprompt_config": {"name": "p", "n_tokens": 500}},
    ],
)
def test_methods_fit_the_small_model(methods: dict[str, Any]) -> None:
    architecture = small(**methods).transformer_architecture
    assert list(method_problems(base_plan_of(architecture), architecture)) == []
    assert plan_of(architecture).num_parameters > base_plan_of(architecture).num_parameters
    assert [name for name in methods if getattr(architecture, name) is None] == []


def test_what_is_added_to_which_modules_stays() -> None:
    modules = ["query", "dense", "head"]
    found = kinds_of(small(lora_config={"rank": 64, "parallel_modules": modules}))
    assert found == {
        f"{module}.lora_lora.{part}"
        for module in ("self_attention.query", "self_attention.dense", "embedding")
        for part in "ab"
    }


def test_a_rank_is_no_larger_than_the_smallest_matrix() -> None:
    config = small(lora_config={"rank": 64, "parallel_modules": ["key", "query"], "rank_pattern": {"key": 2}})
    lora = config.transformer_architecture.lora_config
    assert lora is not None
    sizes = [m.shape for m in modules_of(base_plan_of(config.transformer_architecture)) if m.short in ("key", "query")]
    assert lora.rank == min(map(min, sizes))
    assert lora.rank_pattern == {"key": 2}
