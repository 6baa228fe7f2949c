from __future__ import annotations

from typing import Any

import pytest

from scaling.transformer import TransformerConfig
from scaling.transformer.verify.shrink import shrunk

LARGE: dict[str, Any] = {
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_layers": 31,
    "vocab_size": 128001,
    "sequence_length": 8192,
    "mlp_type": "swiglu",
    "mlp_factor": 3.5,
}


def config(topology: dict[str, Any], **architecture: Any) -> TransformerConfig:
    sizes = {"model_parallel_size": 1, "pipe_parallel_size": 1, "data_parallel_size": 1, "micro_batch_size": 4}
    return TransformerConfig.from_dict(
        {
            "topology": {**sizes, "gradient_accumulation_steps": 16, **topology},
            "transformer_architecture": {**LARGE, **architecture},
        }
    )


@pytest.mark.parametrize(
    ("topology", "architecture"),
    [
        ({}, {}),
        ({"model_parallel_size": 8}, {"attention_num_kv_heads": 8, "attention_qkv_in_one": False}),
        ({"model_parallel_size": 8}, {"attention_num_kv_heads": 2, "attention_qkv_in_one": False}),
        ({"model_parallel_size": 4, "sequence_parallel": True, "data_parallel_size": 2}, {}),
        ({"pipe_parallel_size": 4, "pipe_schedule": "interleaved_1f1b", "pipe_chunks_per_rank": 2}, {}),
        ({"model_parallel_size": 2, "pipe_parallel_size": 2, "data_parallel_size": 2}, {"weight_tying": False}),
    ],
)
def test_a_model_becomes_small_and_keeps_what_a_layout_can_break(
    topology: dict[str, Any], architecture: dict[str, Any]
) -> None:
    large = config(topology, **architecture)
    small = shrunk(large)
    before, after = large.transformer_architecture, small.transformer_architecture
    model_ranks = large.topology.model_parallel_size
    assert after.hidden_size <= 256
    assert after.vocab_size % model_ranks == before.vocab_size % model_ranks
    assert after.num_layers % 2 == before.num_layers % 2
    assert after.weight_tying == before.weight_tying
    assert small.topology.layout == large.topology.layout
    assert small.topology.pipe_schedule == large.topology.pipe_schedule
    assert small.topology.sequence_parallel == large.topology.sequence_parallel
    if before.attention_num_kv_heads is not None:
        assert after.attention_num_kv_heads is not None
        assert (after.attention_num_kv_heads < model_ranks) == (before.attention_num_kv_heads < model_ranks)


def test_shrinking_twice_changes_nothing_more() -> None:
    once = shrunk(config({"model_parallel_size": 2, "pipe_parallel_size": 2}))
    assert shrunk(once) == once
