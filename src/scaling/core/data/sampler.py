"""Decide which samples a rank trains on: pure arithmetic on positions in the order of the whole run.

Every sample that a run ever sees has a position: 0 is the first, and the run never ends. Two questions remain, and they
do not depend on each other.

- Which item is at a position? An `Order` answers: a pure function of (seed, position).
- Whose position is it? The global batch of a step is the next `global_batch_size` positions, cut by index, never by
  rank: place i goes to micro-batch m, data-parallel rank d and slot j with
  i = (m * data_parallel_size + d) * micro_batch_size + j.

So one integer, the number of samples consumed, is the whole state of the data. Whatever else changes on resume (data-
parallel size, micro-batch size, accumulation, workers), the next step continues with the next position.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import count, islice
from typing import Protocol, TypeVar, final

import numpy as np
from numpy.typing import NDArray

from scaling.core.data.permutation import permute
from scaling.core.data.types import BaseDataset
from scaling.core.errors import DataError, LayoutError

Sample = TypeVar("Sample")


class Order(Protocol):
    """Which item of a data set is at each position of the endless run."""

    def items(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the item at each of `positions`."""


@final
@dataclass(frozen=True)
class EpochOrder:
    """Every item once per epoch, each epoch in an order of its own (or, unshuffled, in the order of the data set)."""

    length: int
    key: tuple[int, ...]
    """The key of the shuffling, the seed first."""
    shuffle: bool = True

    def __post_init__(self) -> None:
        _require_samples(self.length)

    def items(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the item at each of `positions`, which may lie in several epochs."""
        epochs, places = np.divmod(positions, self.length)
        if not self.shuffle:
            return places
        items = np.empty_like(places)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            items[chosen] = permute(places[chosen], length=self.length, key=(*self.key, int(epoch)))
        return items


@final
@dataclass(frozen=True)
class EvenOrder:
    """Some items of a data set, spread evenly over all of it, in its order; then the same ones again."""

    length: int
    taken: int
    """How many items, from 1 to `length`."""

    def __post_init__(self) -> None:
        _require_samples(self.length)

    def items(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the item at each of `positions`: place * length / taken, in products that stay below 2^63."""
        places = positions % self.taken
        apart, rest = divmod(self.length, self.taken)
        return places * apart + places * rest // self.taken


def _require_samples(length: int) -> None:
    if length < 1:
        raise DataError("the data set has no samples; check that its files hold documents long enough for one sample")


class OrderedDataset(BaseDataset[Sample]):
    """A data set that decides the order in which it is read, as a mixture does."""

    @abstractmethod
    def order(self, *, key: tuple[int, ...], shuffle: bool) -> Order:
        """Return the order of an endless run; it depends on nothing but the arguments and the data set."""


def order_of(dataset: BaseDataset[Sample], *, key: tuple[int, ...], shuffle: bool) -> Order:
    """Return the order in which a run reads `dataset`: its own if it has one, else epochs."""
    if isinstance(dataset, OrderedDataset):
        return dataset.order(key=key, shuffle=shuffle)
    return EpochOrder(len(dataset), key=key, shuffle=shuffle)


@final
@dataclass(frozen=True)
class BatchGeometry:
    """How a global batch is cut into the micro-batches of the data-parallel ranks."""

    data_parallel_size: int
    micro_batch_size: int
    gradient_accumulation_steps: int

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) < 1:
                raise LayoutError(f"{field.name} is {getattr(self, field.name)}; it has to be at least 1")

    @property
    def global_batch_size(self) -> int:
        """Return the number of samples that all ranks together consume in one step."""
        return self.data_parallel_size * self.micro_batch_size * self.gradient_accumulation_steps

    def places(self, *, micro_batch: int, data_parallel_rank: int) -> range:
        """Return the places in the global batch that one micro-batch of one rank holds."""
        if data_parallel_rank not in range(self.data_parallel_size):
            raise LayoutError(f"data_parallel_rank {data_parallel_rank} is not in range({self.data_parallel_size})")
        if micro_batch not in range(self.gradient_accumulation_steps):
            raise LayoutError(f"micro_batch {micro_batch} is not in range({self.gradient_accumulation_steps})")
        start = (micro_batch * self.data_parallel_size + data_parallel_rank) * self.micro_batch_size
        return range(start, start + self.micro_batch_size)


def positions_of(consumed_samples: int, geometry: BatchGeometry, *, micro_batch: int, data_parallel_rank: int) -> range:
    """Return the positions in one micro-batch of one rank, in the step that follows `consumed_samples` samples."""
    places = geometry.places(micro_batch=micro_batch, data_parallel_rank=data_parallel_rank)
    return range(consumed_samples + places.start, consumed_samples + places.stop)


def items_of(order: Order, positions: range) -> list[int]:
    """Return the items at `positions`."""
    return [int(item) for item in order.items(np.arange(positions.start, positions.stop, dtype=np.int64))]


def training_positions(consumed_samples: int, geometry: BatchGeometry, *, data_parallel_rank: int) -> Iterator[range]:
    """Yield the positions of one rank's micro-batches, step after step, for ever."""
    for start in count(consumed_samples, geometry.global_batch_size):
        for micro_batch in range(geometry.gradient_accumulation_steps):
            yield positions_of(start, geometry, micro_batch=micro_batch, data_parallel_rank=data_parallel_rank)


def evaluation_steps(samples: int, geometry: BatchGeometry, *, limit: int | None = None) -> int:
    """Return how many global batches hold `samples` samples, the last one perhaps not full; at most `limit`."""
    steps = -(-samples // geometry.global_batch_size)
    return steps if limit is None else min(steps, limit)


def evaluation_positions(
    samples: int, geometry: BatchGeometry, *, data_parallel_rank: int, limit: int | None = None
) -> Iterator[range]:
    """Yield the positions of one rank's micro-batches in one pass over `samples` samples.

    Over all ranks, every position below `samples` occurs once (with `limit`, those of the first batches). Shapes stay
    static, so the last batch may extend beyond: positions from `samples` on are padding and must not count. Every rank
    gets the same number of micro-batches.
    """
    micro_batches = evaluation_steps(samples, geometry, limit=limit) * geometry.gradient_accumulation_steps
    yield from islice(training_positions(0, geometry, data_parallel_rank=data_parallel_rank), micro_batches)
