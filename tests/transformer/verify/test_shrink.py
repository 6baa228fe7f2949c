"""A configuration becomes small enough to verify and keeps what a layout can break."""

from __future__ import annotations

from itertools import pairwise
from math import prod
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from scaling.core import ConfigError, TopologyConfig
from scaling.transformer import DataConfig, SoftpromptConfig, TransformerConfig
from scaling.transformer.config.model_plan import plan_of
from scaling.transformer.config.training import CrossEntropyLossConfig
from scaling.transformer.verify import shrink
from scaling.transformer.verify.shrink import axis_sizes, differences, scaled_boundaries, shrunk

LARGE: dict[str, Any] = {
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_layers": 31,
    "vocab_size": 128001,
    "sequence_length": 8192,
    "mlp_type": "swiglu",
    "mlp_factor": 3.5,
}
SIZES = ("data_parallel_size", "pipe_parallel_size", "model_parallel_size")


def config(topology: dict[str, Any], **architecture: Any) -> TransformerConfig:
    sizes = {"model_parallel_size": 1, "pipe_parallel_size": 1, "data_parallel_size": 1, "micro_batch_size": 4}
    return TransformerConfig.from_dict(
        {
            "topology": {**sizes, "gradient_accumulation_steps": 16, **topology},
            "transformer_architecture": {**LARGE, **architecture},
            "data": {"eod_token_id": 127999},
        }
    )


@pytest.mark.parametrize(
    ("topology", "architecture"),
    [
        ({}, {}),
        ({"model_parallel_size": 8}, {"attention_num_kv_heads": 8}),
        ({"model_parallel_size": 8}, {"attention_num_kv_heads": 2}),
        ({"model_parallel_size": 2}, {"attention_num_kv_heads": LARGE["num_attention_heads"]}),
        ({"model_parallel_size": 4, "sequence_parallel": True, "data_parallel_size": 2}, {"rotary_percentage": 0.25}),
        ({"pipe_parallel_size": 4, "pipe_schedule": "interleaved_1f1b", "pipe_chunks_per_rank": 2}, {}),
        ({"model_parallel_size": 2, "pipe_parallel_size": 2, "data_parallel_size": 2}, {"weight_tying": False}),
        ({"model_parallel_size": 5}, {"hidden_size": 3840, "num_attention_heads": 30, "vocab_size": 128000}),
        ({"pipe_parallel_size": 4, "pipe_partition_overwrite": [0, 2, 10, 30, 34]}, {}),
        (
            {
                **{"model_parallel_size": 2, "pipe_parallel_size": 3, "data_parallel_size": 2},
                **{"pipe_schedule": "interleaved_1f1b", "pipe_chunks_per_rank": 2, "gradient_accumulation_steps": 3},
            },
            {},
        ),
        (
            {
                "model_parallel_size": 16,
                "pipe_parallel_size": 8,
                "data_parallel_size": 32,
                "pipe_schedule": "interleaved_1f1b",
                "pipe_chunks_per_rank": 2,
            },
            {"attention_num_kv_heads": 4, "vocab_size": 128000},
        ),
    ],
)
def test_a_model_becomes_small_and_keeps_what_a_layout_can_break(
    topology: dict[str, Any], architecture: dict[str, Any]
) -> None:
    large = config(topology, **architecture)
    small = shrunk(large)
    before, after = large.transformer_architecture, small.transformer_architecture
    large_ranks, ranks = large.topology.model_parallel_size, small.topology.model_parallel_size
    assert small.topology.world_size <= 8
    assert after.hidden_size <= 256
    assert after.num_layers <= 9
    assert (after.vocab_size % ranks == 0) == (before.vocab_size % large_ranks == 0)
    assert after.num_layers % 2 == before.num_layers % 2
    assert (plan_of(after).num_layers % small.topology.pipe_stages == 0) == (
        plan_of(before).num_layers % large.topology.pipe_stages == 0
    )
    assert after.weight_tying == before.weight_tying
    for size in SIZES:
        assert (getattr(small.topology, size) > 1) == (getattr(large.topology, size) > 1)
    assert small.topology.pipe_schedule == large.topology.pipe_schedule
    assert small.topology.sequence_parallel == large.topology.sequence_parallel
    if small.topology.pipe_chunks_per_rank == 1:
        few = 2 * small.topology.pipe_parallel_size
        assert small.topology.gradient_accumulation_steps == min(large.topology.gradient_accumulation_steps, few)
    assert (small.topology.gradient_accumulation_steps > 1) == (large.topology.gradient_accumulation_steps > 1)
    if before.attention_num_kv_heads is not None:
        assert after.attention_num_kv_heads is not None
        assert (after.attention_num_kv_heads < ranks) == (before.attention_num_kv_heads < large_ranks)
        assert (after.attention_num_kv_heads == after.num_attention_heads) == (
            before.attention_num_kv_heads == before.num_attention_heads
        )


@pytest.mark.parametrize(
    "architecture",
    [
        {},
        {"mlp_size": 3},
        {"rotary_percentage": 0.02, "rotary": {"type": "longrope", "short_factor": [1], "long_factor": [2]}},
        {
            "relative_position_embedding_type": "none",
            "attention_head_size": 4,
            "rotary": {"type": "longrope", "short_factor": [1, 2, 3], "long_factor": [2, 3, 4]},
        },
        {"attention_head_size": 9, "rotary": {"type": "none"}},
    ],
    ids=["usual", "thin mlp", "one pair", "no positions", "odd heads"],
)
def test_shrinking_twice_changes_nothing_more(architecture: dict[str, Any]) -> None:
    once = shrunk(config({"model_parallel_size": 1, "pipe_parallel_size": 2}, **architecture))
    assert shrunk(once) == once
    assert list(differences(once, shrunk(once))) == []


def test_logits_in_chunks_stay_in_several() -> None:
    large = config({}).as_dict() | {"training": {"loss_function_config": {"chunk_size": 1024, "z_loss": 0.1}}}
    loss = shrunk(TransformerConfig.from_dict(large)).training.loss_function_config
    assert isinstance(loss, CrossEntropyLossConfig)
    assert (loss.chunk_size, loss.z_loss) == (7, 0.1)


def test_what_has_shrunk_is_said() -> None:
    large = config({"data_parallel_size": 64})
    said = list(differences(large, shrunk(large)))
    assert "data_parallel_size 64 -> 8" in said
    assert "num_layers 31 -> 3" in said


def test_a_small_model_stays_as_it_is() -> None:
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "num_layers": 1, "vocab_size": 40, "sequence_length": 6}
    tiny = TransformerConfig.from_dict(
        {"topology": {"micro_batch_size": 1, "gradient_accumulation_steps": 2}, "transformer_architecture": sizes}
    )
    assert not list(differences(tiny, shrunk(tiny)))


def test_key_value_heads_can_be_cut_by_fewer_ranks() -> None:
    three = {"model_parallel_size": 3, "pipe_parallel_size": 2, "data_parallel_size": 2}
    sizes = {"model_parallel_size": 3, "pipe_parallel_size": 1, "data_parallel_size": 1}
    other = TopologyConfig.from_dict({**sizes, "micro_batch_size": 1, "gradient_accumulation_steps": 1})
    small = shrunk(config(three, num_attention_heads=12, hidden_size=96, attention_num_kv_heads=3), also=other)
    assert small.topology.model_parallel_size == 2
    assert (small.transformer_architecture.attention_num_kv_heads or 1) % 6 == 0


def test_heads_that_the_other_layout_shares_stay_shared() -> None:
    sizes = {"model_parallel_size": 8, "pipe_parallel_size": 1, "data_parallel_size": 1}
    other = TopologyConfig.from_dict({**sizes, "micro_batch_size": 1, "gradient_accumulation_steps": 1})
    for ranks in (1, 2):
        small = shrunk(config({"model_parallel_size": ranks}, attention_num_kv_heads=4), also=other)
        assert small.transformer_architecture.attention_num_kv_heads == 4
        assert small.transformer_architecture.num_attention_heads == 8


def test_short_sequences_can_be_cut_by_fewer_ranks() -> None:
    three = {"model_parallel_size": 3, "pipe_parallel_size": 2, "data_parallel_size": 2, "sequence_parallel": True}
    sizes = {"sequence_length": 15, "num_attention_heads": 12, "hidden_size": 384}
    small = shrunk(config(three, **sizes))
    assert small.topology.model_parallel_size == 2
    assert small.transformer_architecture.sequence_length == 16
    assert shrunk(config({**three, "sequence_parallel": False}, **sizes)).transformer_architecture.sequence_length == 15


def test_a_model_fits_the_other_layout_too() -> None:
    sizes = {"model_parallel_size": 3, "pipe_parallel_size": 5, "data_parallel_size": 1}
    other = TopologyConfig.from_dict({**sizes, "micro_batch_size": 1, "gradient_accumulation_steps": 1})
    small = shrunk(config({"model_parallel_size": 2}, num_attention_heads=48, hidden_size=4608), also=other)
    values = small.as_dict() | {"topology": other.as_dict()}
    assert TransformerConfig.from_dict(values).topology.model_parallel_size == 3


def test_the_small_batch_can_be_cut_as_the_other_layout_cuts_it() -> None:
    sizes = {"model_parallel_size": 1, "pipe_parallel_size": 1, "data_parallel_size": 9}
    other = TopologyConfig.from_dict({**sizes, "micro_batch_size": 1, "gradient_accumulation_steps": 1})
    large = config({"data_parallel_size": 2, "micro_batch_size": 18})
    assert shrunk(large).topology.global_batch_size % 9
    assert shrunk(large, also=other).topology.global_batch_size % 9 == 0


@given(*[st.integers(1, 24)] * 3, st.integers(1, 32))
def test_sizes_fit_the_processes_and_keep_every_axis(data: int, pipe: int, model: int, processes: int) -> None:
    sizes = dict(zip(SIZES, (data, pipe, model), strict=True))
    assume(processes >= 2 ** sum(size > 1 for size in sizes.values()))
    topology = TopologyConfig.from_dict({**sizes, "micro_batch_size": 1, "gradient_accumulation_steps": 1})
    found = axis_sizes(topology, processes)
    assert found["world_size"] == prod(found[size] for size in SIZES) <= processes
    for size in SIZES:
        assert (found[size] > 1) == (sizes[size] > 1)
        assert found[size] <= sizes[size]
    if prod(sizes.values()) <= processes:
        assert {size: found[size] for size in SIZES} == sizes


def test_too_few_processes_are_refused() -> None:
    with pytest.raises(ConfigError, match="takes at least 4 processes, but 3"):
        shrunk(config({"model_parallel_size": 2, "pipe_parallel_size": 2}), processes=3)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=8), st.integers(1, 8), st.integers(0, 20))
def test_boundaries_are_scaled_in_proportion(lengths: list[int], stages: int, spare: int) -> None:
    assume(stages <= len(lengths))
    boundaries = [sum(lengths[:index]) for index in range(len(lengths) + 1)]
    layers = stages + spare
    found = scaled_boundaries(boundaries, stages, layers)
    assert len(found) == stages + 1
    assert (found[0], found[-1]) == (0, layers)
    assert all(start < stop for start, stop in pairwise(found))


def test_the_same_numbers_keep_their_boundaries() -> None:
    assert scaled_boundaries([0, 1, 5, 6], 3, 6) == [0, 1, 5, 6]
    assert scaled_boundaries([0, 2, 10, 12], 3, 6) == [0, 1, 5, 6]


def test_records_stay_records_behind_a_short_soft_prompt() -> None:
    large = config({})
    prompt = SoftpromptConfig(name="a", n_tokens=100)
    data = {"record_format": "auto", "packing": False, "data_prefixes": ["a.jsonl"]}
    small = shrunk(large.model_copy(update={"data": DataConfig.from_dict(data)}))
    assert small.data.records is not None
    assert not small.data.records.packing
    assert small.data.data_prefixes is None
    lengths = shrink.shorter_soft_prompt(prompt.as_dict(), 16)
    assert lengths == {**prompt.as_dict(), "n_tokens": 4}
    assert shrink.shorter_soft_prompt(None, 16) is None
