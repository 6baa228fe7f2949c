"""The sizes of a topology multiply: what is accepted does, what is refused could not."""

from __future__ import annotations

from itertools import product
from math import prod
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling.core.errors import ConfigError
from scaling.core.topology.config import BATCH_SIZES, PARALLEL_SIZES, PipeSchedule, TopologyConfig
from scaling.core.topology.layout import Layout

SIZES = (*PARALLEL_SIZES, "world_size")
BATCH = (*BATCH_SIZES, "global_batch_size")


def some_of(names: tuple[str, ...]) -> st.SearchStrategy[dict[str, int | None]]:
    """Any of the names, absent, null or a small number; numbers with common factors are frequent."""
    number = st.one_of(st.none(), st.sampled_from([1, 2, 3, 4, 6, 8, 12, 16, 24, 48]), st.integers(1, 50))
    return st.fixed_dictionaries({}, optional=dict.fromkeys(names, number))


def fits(config: dict[str, int]) -> bool:
    """The two products, spelled out."""
    return (
        prod(config[name] for name in PARALLEL_SIZES) == config["world_size"]
        and prod(config[name] for name in (*BATCH_SIZES, "data_parallel_size")) == config["global_batch_size"]
    )


def completions(given: dict[str, int | None]) -> int:
    """Count by trial how many complete topologies agree with the numbers given, stopping at two."""
    known = {name: value for name, value in given.items() if value is not None}
    free_factors = [name for name in (*PARALLEL_SIZES, *BATCH_SIZES) if name not in known]
    limits = [
        known.get("world_size", 51) if name in PARALLEL_SIZES else known.get("global_batch_size", 51)
        for name in free_factors
    ]
    found = 0
    for values in product(*(range(1, limit + 1) for limit in limits)):
        whole = {**known, **dict(zip(free_factors, values, strict=True))}
        whole.setdefault("world_size", prod(whole[name] for name in PARALLEL_SIZES))
        whole.setdefault("global_batch_size", prod(whole[name] for name in (*BATCH_SIZES, "data_parallel_size")))
        found += fits(whole)
        if found == 2:
            break
    return found


@pytest.mark.parametrize("missing", [*SIZES, *(name for name in BATCH if name not in SIZES)])
def test_each_of_the_numbers_follows_from_the_others(missing: str) -> None:
    sizes = {"model_parallel_size": 2, "pipe_parallel_size": 3, "data_parallel_size": 5, "world_size": 30}
    batch = {"micro_batch_size": 7, "gradient_accumulation_steps": 2, "global_batch_size": 70}
    whole = {**sizes, **batch}
    config = TopologyConfig.from_dict({name: value for name, value in whole.items() if name != missing})
    assert {name: getattr(config, name) for name in whole} == whole


@given(some_of((*SIZES, *BATCH)))
def test_what_is_accepted_satisfies_both_products_and_keeps_what_was_given(values: dict[str, int | None]) -> None:
    try:
        config = TopologyConfig.from_dict(values)
    except ConfigError:
        return
    numbers = {name: getattr(config, name) for name in (*SIZES, *BATCH)}
    assert fits(numbers)
    assert all(type(value) is int and value >= 1 for value in numbers.values())
    assert {name: value for name, value in values.items() if value is not None}.items() <= numbers.items()
    assert config.layout.world_size == config.world_size


@given(some_of(SIZES), some_of(BATCH))
def test_a_topology_is_refused_exactly_if_no_or_several_sizes_agree_with_it(
    sizes: dict[str, int | None], batch: dict[str, int | None]
) -> None:
    known = [sum(value is not None for value in part.values()) for part in (sizes, batch)]
    values = {**sizes, **batch}
    if sizes.get("world_size") is None:
        values = {**dict.fromkeys(PARALLEL_SIZES, 1), **{name: n for name, n in values.items() if n is not None}}
    if known[1] == 0:
        values |= {"micro_batch_size": 2, "gradient_accumulation_steps": 1}
    determined = (sizes.get("world_size") is None or known[0] >= 3) and known[1] in (0, 2, 3)
    try:
        TopologyConfig.from_dict({**sizes, **batch})
    except ConfigError:
        assert not determined or completions(values) == 0
    else:
        assert determined
        assert completions(values) == 1


def test_nothing_given_is_one_process_with_micro_batches_of_two() -> None:
    for values in ({}, dict.fromkeys(SIZES), dict.fromkeys(PARALLEL_SIZES, 1)):
        config = TopologyConfig.from_dict(values)
        assert [getattr(config, name) for name in (*SIZES, *BATCH)] == [1, 1, 1, 1, 2, 1, 2]


@pytest.mark.parametrize("given_size", PARALLEL_SIZES)
def test_sizes_that_are_not_given_are_one_without_a_number_of_processes(given_size: str) -> None:
    config = TopologyConfig.from_dict({given_size: 2})
    assert {name: getattr(config, name) for name in SIZES} == {
        **dict.fromkeys(SIZES, 1),
        given_size: 2,
        "world_size": 2,
    }


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"world_size": 7, "model_parallel_size": 2, "pipe_parallel_size": 1},
            "data_parallel_size: does not follow: world_size (7) is not divisible by model_parallel_size 2 * "
            "pipe_parallel_size 1 = 2; the nearest world_size that is: 8",
        ),
        (
            {"world_size": 8, "model_parallel_size": 2, "pipe_parallel_size": 1, "data_parallel_size": 1},
            "world_size: is 8, but model_parallel_size 2 * pipe_parallel_size 1 * data_parallel_size 1 = 2; make them "
            "equal, or leave out one of the numbers, for example topology.world_size=null",
        ),
        (
            {"world_size": 8, "model_parallel_size": 2},
            "pipe_parallel_size: does not follow from model_parallel_size 2 and world_size 8 alone; give "
            "pipe_parallel_size or data_parallel_size too",
        ),
        (
            {"world_size": 8},
            "model_parallel_size: does not follow from world_size 8 alone; give 2 of model_parallel_size, "
            "pipe_parallel_size, data_parallel_size too",
        ),
        (
            {"micro_batch_size": 4},
            "gradient_accumulation_steps: does not follow from micro_batch_size 4 and data_parallel_size 1 alone; give "
            "gradient_accumulation_steps or global_batch_size too",
        ),
        (
            {"micro_batch_size": 4, "global_batch_size": 10},
            "gradient_accumulation_steps: does not follow: global_batch_size (10) is not divisible by "
            "micro_batch_size 4 * data_parallel_size 1 = 4; the nearest global_batch_size that is: 12",
        ),
        (
            {"micro_batch_size": 4, "gradient_accumulation_steps": 2, "global_batch_size": 10},
            "global_batch_size: is 10, but micro_batch_size 4 * gradient_accumulation_steps 2 * data_parallel_size 1 = "
            "8; make them equal, or leave out one of the numbers, for example topology.micro_batch_size=null",
        ),
        (
            {
                **dict.fromkeys(SIZES, 1),
                "micro_batch_size": 4,
                "gradient_accumulation_steps": 2,
                "global_batch_size": 4,
            },
            "global_batch_size: is 4, but micro_batch_size 4 * gradient_accumulation_steps 2 * data_parallel_size 1 = "
            "8; make them equal, or leave out one of the numbers, for example "
            "topology.gradient_accumulation_steps=null",
        ),
        (
            {"data_parallel_size": 4, "micro_batch_size": 2, "gradient_accumulation_steps": 1, "global_batch_size": 6},
            "global_batch_size: is 6, but micro_batch_size 2 * gradient_accumulation_steps 1 * data_parallel_size 4 = "
            "8; make them equal, or leave out one of the numbers, for example topology.global_batch_size=null",
        ),
        (
            {"pipe_schedule": "interleaved_1f1b"},
            "pipe_chunks_per_rank: is 1, but interleaved_1f1b needs at least 2 stages on each rank; set it to 2, or "
            "pipe_schedule to 1f1b",
        ),
        (
            {"pipe_chunks_per_rank": 2},
            "pipe_chunks_per_rank: is 2, but 1f1b has 1 stage on each rank; set it to 1, or pipe_schedule to "
            "interleaved_1f1b",
        ),
        (
            {
                **dict.fromkeys(PARALLEL_SIZES, 4),
                "micro_batch_size": 1,
                "gradient_accumulation_steps": 6,
                "pipe_schedule": "interleaved_1f1b",
                "pipe_chunks_per_rank": 2,
            },
            "gradient_accumulation_steps: is 6, but must be a multiple of pipe_parallel_size (4) with "
            "interleaved_1f1b; the nearest is 8",
        ),
        (
            {"pipe_partition_overwrite": [0, 3, 7]},
            "pipe_partition_overwrite: has 3 boundaries, but must have 2: one more than there are stages "
            "(pipe_parallel_size 1 * pipe_chunks_per_rank 1)",
        ),
        (
            {"pipe_partition_overwrite": [0, 0]},
            "pipe_partition_overwrite: is [0, 0], but must start with 0 and increase: no stage may be empty",
        ),
        (
            {"model_parallel_size": 0},
            "model_parallel_size: must be a whole number of at least 1, not 0",
        ),
    ],
)
def test_what_does_not_fit_is_named_with_values_and_remedy(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        TopologyConfig.from_dict(values)
    assert str(raised.value) == message


def test_a_process_learns_its_place_from_the_launcher() -> None:
    config = TopologyConfig.from_dict({"model_parallel_size": 2, "pipe_parallel_size": 2, "data_parallel_size": 3})
    here = config.with_launch(7, 12, local_slot=3)
    assert (here.global_rank, here.local_slot, here.layout) == (7, 3, Layout(pipe=2, data=3, model=2))
    assert here.digest() == config.digest()
    assert config.global_rank is None


@pytest.mark.parametrize(
    ("world_size", "found", "remedy"),
    [
        (8, "the launcher started 8 processes", "start 12, or set topology.data_parallel_size to 2"),
        (1, "this process is alone", "start 12 with torchrun or srun, or set sizes whose product is 1"),
    ],
)
def test_another_number_of_processes_is_refused_with_both_numbers(world_size: int, found: str, remedy: str) -> None:
    config = TopologyConfig.from_dict({"model_parallel_size": 2, "pipe_parallel_size": 2, "data_parallel_size": 3})
    with pytest.raises(ConfigError) as raised:
        config.with_launch(0, world_size, 0)
    assert str(raised.value) == (
        f"topology.world_size: {found}, but model_parallel_size 2 * pipe_parallel_size 2 * data_parallel_size 3 = 12; "
        f"{remedy}"
    )


def test_the_number_of_stages_counts_chunks() -> None:
    sizes = {"model_parallel_size": 1, "pipe_parallel_size": 2, "data_parallel_size": 1}
    chunks = {"pipe_schedule": "interleaved_1f1b", "pipe_chunks_per_rank": 3, "gradient_accumulation_steps": 2}
    config = TopologyConfig.from_dict({**sizes, **chunks, "micro_batch_size": 1})
    assert (config.pipe_stages, config.pipe_schedule) == (6, PipeSchedule.INTERLEAVED)
