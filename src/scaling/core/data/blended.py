"""Blend several data sets into one: each in its own shuffled order, mixed in exact proportions for as long as needed.

As a data set, a blend is simply all its sources one after another: an evaluation of it sees every sample once. Its
order makes it a mixture: the source at a position follows from the weights (`mixture.py`), and the sample from how
often that source was drawn before. Each source goes through its samples in its own epochs, shuffled anew each time. So
a source with a large weight is repeated (up-sampled) while one with a small weight is still in its first epoch.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final, TypeVar, final

import numpy as np
from numpy.typing import NDArray

from scaling.core.data.config import BlendedDatasetConfig
from scaling.core.data.mixture import (
    SCATTER_WINDOW,
    Interleaving,
    ScatteredInterleaving,
    mixture_shares,
    mixture_weights,
)
from scaling.core.data.sampler import Order, OrderedDataset, order_of
from scaling.core.data.types import BaseDataset, MicroBatch
from scaling.core.errors import DataError

Sample = TypeVar("Sample")

_SCATTER_KEY: Final = -1


@final
@dataclass(frozen=True)
class MixtureOrder:
    """The order of a blend's items over an endless run."""

    interleaving: Interleaving | ScatteredInterleaving
    orders: tuple[Order, ...]
    """The order of each source."""
    offsets: tuple[int, ...]
    """The item of the blend that is item 0 of each source."""

    def items(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the item at each of `positions`."""
        sources, draws = self.interleaving.locate(positions)
        items = np.empty_like(positions)
        for source in np.unique(sources):
            drawn = sources == source
            items[drawn] = self.offsets[source] + self.orders[source].items(draws[drawn])
        return items


@final
class BlendedDataset(OrderedDataset[Sample]):
    """Several data sets of one kind of sample, mixed by `config`. The first one collates."""

    def __init__(
        self,
        datasets: Sequence[BaseDataset[Sample]],
        config: BlendedDatasetConfig,
        *,
        names: Sequence[str] | None = None,
    ) -> None:
        if not datasets:
            raise DataError("a blend needs at least one data set")
        self.datasets = tuple(datasets)
        self.names = tuple(names) if names is not None else tuple(str(number) for number in range(len(datasets)))
        if len(set(self.names)) != len(self.datasets) or len(self.names) != len(self.datasets):
            raise DataError(f"{len(self.datasets)} data sets need as many different names, not {list(self.names)}")
        self.sizes = tuple(len(dataset) for dataset in datasets)
        for name, size in zip(self.names, self.sizes, strict=True):
            if size == 0:
                raise DataError(
                    f"data set {name} has no samples; leave it out, or check that its documents are long enough"
                )
        self._offsets = tuple(accumulate(self.sizes, initial=0))
        self._length = max(self._offsets[-1], config.minimum_dataset_size)
        self._scatters = config.shuffle_dataset_indices and len(datasets) > 1
        shares = mixture_shares(self.sizes, mixture_weights(self.sizes, config)) if len(datasets) > 1 else (1,)
        self.interleaving = Interleaving(shares)

    def __len__(self) -> int:
        """Return the number of samples in all sources, or `minimum_dataset_size` if that is more."""
        return self._length

    def __getitem__(self, index: int) -> Sample:
        source, item = self.locate(index)
        return self.datasets[source][item]

    def locate(self, index: int) -> tuple[int, int]:
        """Return the source of item `index`, and its item there. Beyond the last sample, items start over."""
        if index not in range(self._length):
            raise IndexError(f"item {index} does not exist: the blend has {self._length}")
        index %= self._offsets[-1]
        source = bisect_right(self._offsets, index) - 1
        return source, index - self._offsets[source]

    def collate(self, samples: Sequence[Sample], positions: Sequence[int], valid: Sequence[bool]) -> MicroBatch:
        """Make one micro-batch, as the first source does."""
        return self.datasets[0].collate(samples, positions, valid)

    def fingerprint(self) -> str:
        """Return a digest of the sources, of their shares, and of how they are shuffled."""
        parts = [*(dataset.fingerprint() for dataset in self.datasets), *map(str, self.interleaving.shares)]
        parts.append(str(SCATTER_WINDOW if self._scatters else False))
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:32]

    def order(self, *, key: tuple[int, ...], shuffle: bool) -> Order:
        """Return the order of an endless run; that of the data set itself where there is only one data set."""
        if len(self.datasets) == 1:
            return order_of(self.datasets[0], key=key, shuffle=shuffle)
        interleaving: Interleaving | ScatteredInterleaving = self.interleaving
        if shuffle and self._scatters:
            interleaving = ScatteredInterleaving(self.interleaving, samples=self._offsets[-1], key=(*key, _SCATTER_KEY))
        return MixtureOrder(
            interleaving=interleaving,
            orders=tuple(
                order_of(dataset, key=(*key, source), shuffle=shuffle) for source, dataset in enumerate(self.datasets)
            ),
            offsets=self._offsets,
        )

    def epochs(self, consumed_samples: int) -> dict[str, float]:
        """Return the epochs of each source so far; with shuffle_dataset_indices exact at window borders only."""
        draws = self.interleaving.draws_before(consumed_samples)
        return {
            name: drawn / size if size else 0.0 for name, drawn, size in zip(self.names, draws, self.sizes, strict=True)
        }
