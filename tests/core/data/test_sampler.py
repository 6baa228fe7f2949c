"""Which rank reads which sample: every sample once in each epoch, wherever a run resumes and in any layout."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.core.data.blended import MixtureOrder
from scaling.core.data.config import BlendedDatasetConfig
from scaling.core.data.mixture import Interleaving, ScatteredInterleaving, mixture_shares, mixture_weights
from scaling.core.data.sampler import (
    BatchGeometry,
    EpochOrder,
    EvenOrder,
    Order,
    evaluation_positions,
    evaluation_steps,
    items_of,
    positions_of,
    training_positions,
)
from scaling.core.errors import DataError, LayoutError

geometries = st.builds(BatchGeometry, st.integers(1, 8), st.integers(1, 5), st.integers(1, 5))


def positions_by_rank(consumed_samples: int, geometry: BatchGeometry) -> list[list[range]]:
    """For every data-parallel rank, the positions of its micro-batches in one step."""
    return [
        [
            positions_of(consumed_samples, geometry, micro_batch=micro_batch, data_parallel_rank=rank)
            for micro_batch in range(geometry.gradient_accumulation_steps)
        ]
        for rank in range(geometry.data_parallel_size)
    ]


def positions_in_step(consumed_samples: int, geometry: BatchGeometry) -> list[int]:
    return [
        position
        for micro_batches in positions_by_rank(consumed_samples, geometry)
        for micro_batch in micro_batches
        for position in micro_batch
    ]


@settings(deadline=None, derandomize=True, max_examples=100)
@given(geometry=geometries, consumed_samples=st.integers(0, 10**15))
def test_the_ranks_of_a_step_share_the_next_positions_without_overlap(
    geometry: BatchGeometry, consumed_samples: int
) -> None:
    positions = positions_in_step(consumed_samples, geometry)
    assert sorted(positions) == list(range(consumed_samples, consumed_samples + geometry.global_batch_size))


def test_the_batch_is_cut_by_micro_batch_then_rank_then_slot() -> None:
    geometry = BatchGeometry(data_parallel_size=2, micro_batch_size=3, gradient_accumulation_steps=2)
    assert positions_by_rank(100, geometry) == [[range(100, 103), range(106, 109)], [range(103, 106), range(109, 112)]]


@pytest.mark.parametrize("sizes", [(0, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_a_geometry_without_samples_is_refused(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(LayoutError, match="has to be at least 1"):
        BatchGeometry(*sizes)


def test_ranks_and_micro_batches_that_do_not_exist_are_refused() -> None:
    with pytest.raises(LayoutError, match="data_parallel_rank 2"):
        positions_of(0, BatchGeometry(2, 1, 1), micro_batch=0, data_parallel_rank=2)
    with pytest.raises(LayoutError, match="micro_batch 1"):
        positions_of(0, BatchGeometry(2, 1, 1), micro_batch=1, data_parallel_rank=0)


@settings(deadline=None, derandomize=True, max_examples=50)
@given(length=st.integers(1, 300), seed=st.integers(0, 2**32), start=st.integers(0, 10**12), shuffle=st.booleans())
def test_every_epoch_holds_every_item_once_wherever_the_run_resumes(
    length: int, seed: int, start: int, shuffle: bool
) -> None:
    order = EpochOrder(length, key=(seed,), shuffle=shuffle)
    epoch = start // length * length
    items = items_of(order, range(epoch, epoch + 2 * length))
    assert sorted(items[:length]) == sorted(items[length:]) == list(range(length))
    assert items_of(order, range(epoch + length // 2, epoch + length + 1)) == items[length // 2 : length + 1]


def test_epochs_differ_in_order_and_unshuffled_ones_do_not() -> None:
    shuffled, plain = (EpochOrder(50, key=(3,), shuffle=shuffle) for shuffle in (True, False))
    assert items_of(shuffled, range(50)) != items_of(shuffled, range(50, 100))
    assert items_of(plain, range(100)) == [*range(50), *range(50)]


def test_an_empty_data_set_is_refused() -> None:
    with pytest.raises(DataError, match="no samples"):
        EpochOrder(0, key=(1,))
    with pytest.raises(DataError, match="no samples"):
        EvenOrder(0, 1)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(geometry=geometries, samples=st.integers(1, 400))
def test_an_evaluation_sees_every_sample_once_in_equally_many_micro_batches_per_rank(
    geometry: BatchGeometry, samples: int
) -> None:
    ranks = [
        list(evaluation_positions(samples, geometry, data_parallel_rank=rank))
        for rank in range(geometry.data_parallel_size)
    ]
    micro_batches = evaluation_steps(samples, geometry) * geometry.gradient_accumulation_steps
    assert {len(rank) for rank in ranks} == {micro_batches}
    assert {len(positions) for rank in ranks for positions in rank} == {geometry.micro_batch_size}
    seen = sorted(position for rank in ranks for positions in rank for position in positions)
    assert seen == list(range(len(seen)))
    assert samples <= len(seen) < samples + geometry.global_batch_size


@settings(deadline=None, derandomize=True)
@given(length=st.integers(1, 2**31), data=st.data())
def test_an_even_order_takes_different_items_from_the_first_part_to_the_last(length: int, data: st.DataObject) -> None:
    taken = data.draw(st.integers(1, length))
    some = np.unique([*data.draw(st.lists(st.integers(0, taken - 1), max_size=20)), 0, taken - 1])
    items = EvenOrder(length, taken).items(some)
    assert (np.diff(items) >= length // taken).all()
    assert items[0] == 0
    assert length - length // taken - 1 <= items[-1] < length
    assert (EvenOrder(length, taken).items(some + taken) == items).all()


def test_an_evaluation_can_be_limited_to_some_steps() -> None:
    geometry = BatchGeometry(data_parallel_size=2, micro_batch_size=2, gradient_accumulation_steps=1)
    assert evaluation_steps(10, geometry) == 3
    assert evaluation_steps(10, geometry, limit=2) == 2
    assert evaluation_steps(10, geometry, limit=5) == 3
    assert list(evaluation_positions(10, geometry, data_parallel_rank=1, limit=2)) == [range(2, 4), range(6, 8)]


GLOBAL_BATCH_SIZES = (24, 40, 42, 56)
"""Between them, each number of data-parallel ranks from 1 to 8 divides one."""


def random_geometry(global_batch_size: int, chance: random.Random) -> BatchGeometry:
    """Any way to cut the global batch for 1 to 8 data-parallel ranks."""
    data_parallel_size = chance.choice([size for size in range(1, 9) if global_batch_size % size == 0])
    per_rank = global_batch_size // data_parallel_size
    micro_batch_size = chance.choice([size for size in range(1, per_rank + 1) if per_rank % size == 0])
    return BatchGeometry(data_parallel_size, micro_batch_size, per_rank // micro_batch_size)


def run_with_accidents(steps: int, start: int, global_batch_size: int, chance: random.Random) -> Iterator[list[int]]:
    """Yield the positions of each step of a run that is killed and resumed, each time with another geometry.

    Ranks read ahead by different amounts, are killed within a step, and continue from the last completed step.
    """
    step = 0
    while step < steps:
        geometry = random_geometry(global_batch_size, chance)
        streams = [
            training_positions(start + step * global_batch_size, geometry, data_parallel_rank=rank)
            for rank in range(geometry.data_parallel_size)
        ]
        for _ in range(min(chance.randint(1, 4), steps - step)):
            yield [
                position
                for stream in streams
                for positions in islice(stream, geometry.gradient_accumulation_steps)
                for position in positions
            ]
            step += 1
        for stream in streams:  # workers have read ahead what the killed run never used
            list(islice(stream, chance.randint(0, 5)))


def random_order(chance: random.Random) -> Order:
    """An order whose epochs end within the run: of one data set or of a mixture."""
    seed = chance.randint(0, 2**32)
    sizes = [chance.randint(20, 90) for _ in range(chance.randint(1, 4))]
    if len(sizes) == 1:
        return EpochOrder(sizes[0], key=(seed,))
    config = BlendedDatasetConfig(weighted_sampler_alpha=chance.random())
    interleaving = Interleaving(mixture_shares(sizes, mixture_weights(sizes, config)))
    scattered = ScatteredInterleaving(interleaving, samples=sum(sizes), key=(seed, -1), window=64)
    return MixtureOrder(
        interleaving=scattered if chance.random() < 0.5 else interleaving,
        orders=tuple(EpochOrder(size, key=(seed, source)) for source, size in enumerate(sizes)),
        offsets=tuple(int(offset) for offset in np.cumsum([0, *sizes])),
    )


def test_no_schedule_of_layouts_and_accidents_repeats_or_skips_a_sample() -> None:
    chance = random.Random(20)
    steps = 6
    for _ in range(1000):
        order = random_order(chance)
        start = chance.randint(0, 10**9)
        global_batch_size = chance.choice(GLOBAL_BATCH_SIZES)
        positions = range(start, start + steps * global_batch_size)
        run = np.array(list(run_with_accidents(steps, start, global_batch_size, chance)))
        assert sorted(run.flatten()) == list(positions)
        items = order.items(np.concatenate([run.flatten(), np.arange(positions.start, positions.stop)]))
        for actual, undisturbed in zip(*items.reshape(2, *run.shape), strict=True):
            assert Counter(actual.tolist()) == Counter(undisturbed.tolist())
