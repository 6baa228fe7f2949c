"""Decide from which source each sample of a mixture comes: exact proportions, computed for one position at a time.

A mixture is given by whole numbers, its shares: of every sum(shares) consecutive samples that start at a multiple of
this sum, exactly shares[i] come from source i. In between, each source keeps as close to its share as whole samples
allow. Nothing is stored and nothing is random, so position 10^12 costs as much as position 0. On request, sources are
shuffled within windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import accumulate
from math import gcd, lcm
from typing import Final, TypeVar, final

import numpy as np
from numpy.typing import NDArray

from scaling.core.data.config import BlendedDatasetConfig
from scaling.core.data.permutation import permute
from scaling.core.errors import ConfigError, DataError, Problem

LARGEST_TOTAL: Final = 1 << 31
"""Shares with a larger sum are rounded, by less than 10^-9 of the mixture: products of two such numbers fit 64 bits."""

SCATTER_WINDOW: Final = 1 << 12
"""Sources are shuffled within this many positions: up to 2 ms for each micro-batch of up to 100 sources."""

Count = TypeVar("Count", int, NDArray[np.int64])


def weights_by_num_docs(sizes: Sequence[int], *, alpha: float = 1.0) -> list[Fraction]:
    """Return weights with which each source's part of the mixture is its part of all samples, to the power of `alpha`.

    A weight says how often a sample is seen, relative to the samples of other sources. With p = size / sum(sizes), the
    parts are p^alpha (over their sum) and the weights parts / p: `alpha` 1 weighs all samples the same, 0 makes all
    parts equal.
    """
    return _weights_for_parts(sizes, _powers(sizes, alpha))


def weights_examples_proportional(
    sizes: Sequence[int], *, maximum: int | None = None, temperature: float = 1.0
) -> list[Fraction]:
    """Return weights with which each part is min(size, maximum)^(1 / temperature), over their sum."""
    capped = [size if maximum is None else min(size, maximum) for size in sizes]
    return _weights_for_parts(sizes, _powers(capped, 1 / temperature))


def mixture_weights(sizes: Sequence[int], config: BlendedDatasetConfig) -> list[Fraction]:
    """Return the weights that `config` asks for."""
    if config.weight_by_num_documents and config.weight_examples_proportional:
        return weights_examples_proportional(sizes, maximum=config.ep_maximum, temperature=config.ep_temperature)
    if config.weight_by_num_documents:
        return weights_by_num_docs(sizes, alpha=config.weighted_sampler_alpha)
    weights = config.weights or []
    if len(weights) != len(sizes):
        raise ConfigError(
            Problem(
                "blended_dataset.weights", f"has {len(weights)} entries for {len(sizes)} data sets; give one for each"
            )
        )
    return _normalized([Fraction(repr(float(weight))) for weight in weights])  # 0.1 means one tenth


def mixture_shares(sizes: Sequence[int], weights: Sequence[Fraction]) -> tuple[int, ...]:
    """Return the smallest whole numbers in proportion to size times weight."""
    products = [size * weight for size, weight in zip(sizes, weights, strict=True)]
    if not any(products):
        plain = [float(weight) for weight in weights]
        raise DataError(f"nothing is left to mix: the data sets have sizes {list(sizes)} and weights {plain}")
    denominator = lcm(*(product.denominator for product in products))
    shares = [int(product * denominator) for product in products]
    divisor = gcd(*shares)
    shares = [share // divisor for share in shares]
    if (total := sum(shares)) > LARGEST_TOTAL:
        scale = Fraction(LARGEST_TOTAL // 2, total)
        shares = [max(round(share * scale), 1) if share else 0 for share in shares]
    return tuple(shares)


@final
class Interleaving:
    """The order of sources in a mixture.

    The sources are halved again and again, down to single ones. At each halving, round(n * left / total) of the first n
    samples that arrive go to the left half. So the whole path of a sample follows from its position.
    """

    def __init__(self, shares: Sequence[int]) -> None:
        self.shares = tuple(shares)
        self._before = tuple(accumulate(shares, initial=0))

    def locate(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the source of the sample at each position, and how many samples of that source come earlier."""
        sources, draws = np.empty_like(positions), np.empty_like(positions)
        arrivals = [(0, len(self.shares), np.arange(len(positions)), positions)]
        while arrivals:
            first, stop, which, ranks = arrivals.pop()
            if stop == first + 1:
                sources[which], draws[which] = first, ranks
            elif len(which) > 0:
                middle, left, total = self._halve(first, stop)
                gone_left = _share_of(ranks, left, total)
                goes_left = _share_of(ranks + 1, left, total) > gone_left
                arrivals.append((first, middle, which[goes_left], gone_left[goes_left]))
                arrivals.append((middle, stop, which[~goes_left], (ranks - gone_left)[~goes_left]))
        return sources, draws

    def draws_before(self, position: int) -> list[int]:
        """Return how many of the samples before `position` come from each source."""
        draws = [0] * len(self.shares)
        arrivals = [(0, len(self.shares), position)]
        while arrivals:
            first, stop, arrived = arrivals.pop()
            if stop == first + 1:
                draws[first] = arrived
            elif arrived > 0:
                middle, left, total = self._halve(first, stop)
                gone_left = _share_of(arrived, left, total)
                arrivals += [(first, middle, gone_left), (middle, stop, arrived - gone_left)]
        return draws

    def _halve(self, first: int, stop: int) -> tuple[int, int, int]:
        """Return where the sources from `first` to `stop` are halved, the share of the left half, and that of both."""
        middle = (first + stop) // 2
        return middle, self._before[middle] - self._before[first], self._before[stop] - self._before[first]


@final
class ScatteredInterleaving:
    """The order of sources in a mixture, shuffled within windows, so that no pattern is left.

    Sources are shuffled, not samples: each source still supplies its samples in the same order, so its epochs stay
    intact. A window holds as many samples of each source as it would unshuffled. Windows never cross the end of a
    cycle, the least multiple of sum(shares) that is not below `samples`, so the shares are exact there. If `samples` is
    the number of all samples and the shares are in proportion to the sizes of the sources, a cycle is one epoch of all
    of them.
    """

    def __init__(
        self, interleaving: Interleaving, *, samples: int, key: tuple[int, ...], window: int = SCATTER_WINDOW
    ) -> None:
        total = sum(interleaving.shares)
        self._interleaving = interleaving
        self._cycle = -(-samples // total) * total
        self._key = key
        self._window = window

    def locate(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the source of the sample at each position, and how many samples of that source come earlier."""
        sources, draws = np.empty_like(positions), np.empty_like(positions)
        starts = positions - positions % self._cycle % self._window
        for start in np.unique(starts).tolist():
            here = starts == start
            places = positions[here] - start
            sources[here], draws[here] = (found[places] for found in self._window_from(start))
        return sources, draws

    def _window_from(self, start: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        places = np.arange(min(self._window, self._cycle - start % self._cycle))
        sources, draws = self._interleaving.locate(start + places)
        scattered = sources[permute(places, length=len(places), key=(*self._key, start))]
        in_turn = np.empty_like(draws)
        in_turn[np.argsort(scattered, kind="stable")] = draws[np.argsort(sources, kind="stable")]
        return scattered, in_turn


def _share_of(arrived: Count, part: int, total: int) -> Count:
    """Return arrived * part / total, rounded, in steps that stay below 2^63 for arrived up to 2^62."""
    return arrived // total * part + (arrived % total * part + total // 2) // total


def _weights_for_parts(sizes: Sequence[int], parts: Sequence[Fraction]) -> list[Fraction]:
    return _normalized([part / size for size, part in zip(sizes, parts, strict=True)])


def _normalized(weights: Sequence[Fraction]) -> list[Fraction]:
    total = sum(weights)
    return [weight / total for weight in weights]


def _powers(sizes: Sequence[int], exponent: float) -> list[Fraction]:
    """Return numbers in proportion to size^exponent, exactly for the exponents 0 and 1; none overflows."""
    ratios = [Fraction(size, max(sizes)) for size in sizes]
    if exponent in (0, 1):
        return [ratio ** int(exponent) for ratio in ratios]
    return [Fraction(float(ratio) ** exponent) for ratio in ratios]
