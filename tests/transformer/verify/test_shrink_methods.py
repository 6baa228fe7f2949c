"""Methods of fine-tuning become small with their model, and still change modules of the same kinds."""

from __future__ import annotations

from typing import Any

import pytest

from scaling.transformer import TransformerConfig
from scaling.transformer.config.methods import modules_of
from scaling.transformer.config.model_plan import base_plan_of, plan_of
from scaling.transformer.verify.shrink import shrunk

LARGE: dict[str, Any] = {
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "attention_num_kv_heads": 8,
    "num_layers": 31,
    "vocab_size": 128001,
    "sequence_length": 8192,
    "attention_bias": False,
    "weight_tying": False,
}
METHODS: dict[str, Any] = {
    "lora_config": {
        "parallel_modules": ["query", r"layers\.29\.mlp\.dense_in", "head"],
        "rank": 512,
        "rank_pattern": {"query": 256, r"layers\.29\.": 128},
        "alpha_pattern": {r"layers\.29\.": 3.0, "linear": 2.0},
    },
    "ia3_config": {"parallel_modules": ["key", "dense_out"]},
    "bitfit_bias_config": {"name": "b", "add_to": [r"layers\.30\..*value"]},
    "adapter_config": {"name": "a", "mlp_downsampling_factor": 0.0078125},
    "softprompt_config": {"name": "p", "n_tokens": 100},
    "finetunable_token_ids": [128000, 127999, 5],
}


def config(**methods: Any) -> TransformerConfig:
    sizes = {
        "model_parallel_size": 2,
        "pipe_parallel_size": 1,
        "data_parallel_size": 1,
        "micro_batch_size": 2,
        "gradient_accumulation_steps": 2,
    }
    return TransformerConfig.from_dict(
        {"topology": sizes, "transformer_architecture": {**LARGE, **methods}, "data": {"eod_token_id": 3}}
    )


@pytest.mark.parametrize("method", METHODS)
def test_a_method_fits_the_small_model_and_changes_the_same_kinds_of_modules(method: str) -> None:
    large = config(**{method: METHODS[method]})
    small = shrunk(large)

    def changed(one: TransformerConfig) -> set[tuple[str, str]]:
        architecture = one.transformer_architecture
        return {(edit.module, type(edit).__name__) for layer in plan_of(architecture).layers() for edit in layer.edits}

    assert changed(small) == changed(large)
    assert small.transformer_architecture.hidden_size < 100


def test_what_is_measured_in_features_tokens_and_layers_is_made_small() -> None:
    architecture = shrunk(config(**METHODS)).transformer_architecture
    lora, prompt, adapter = architecture.lora_config, architecture.softprompt_config, architecture.adapter_config
    assert lora is not None
    assert lora.parallel_modules == ["query", "dense_in", "head"]
    assert list(lora.rank_pattern) == ["query"]
    assert list(lora.alpha_pattern) == ["linear"]
    shapes = [m.shape for m in modules_of(base_plan_of(architecture)) if m.is_one_of(lora.parallel_modules)]
    assert lora.rank == lora.rank_pattern["query"] == min(min(shape) for shape in shapes)
    assert prompt is not None
    assert prompt.n_tokens < architecture.sequence_length
    assert adapter is not None
    assert adapter.mlp_downsampling_factor == 1 / architecture.hidden_size
    assert len(set(architecture.finetunable_token_ids)) == 3
    assert max(architecture.finetunable_token_ids) < architecture.vocab_size
