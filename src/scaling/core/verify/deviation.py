"""Deviation of tensors that ranks hold in parts from a reference: pure arithmetic on arrays and boxes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scaling.core.boxes import Box, uncovered, whole

Array = NDArray[np.float64]

FLOOR = 1e-2
"""Differences are relative to the tensor's largest element, but to no less than this share of the largest element of
all tensors: the gradient of some parameters (a bias of keys, without positions) is zero except for rounding errors,
which must not be compared with each other."""


@dataclass(frozen=True, kw_only=True)
class Deviation:
    """The largest deviation from the reference in one rank's part of a tensor."""

    key: str
    rank: int
    largest: float
    """The largest |expected| of the elements that this rank holds."""
    absolute: float = 0.0
    """The largest |actual - expected|; infinite where only one of the two is finite."""
    index: tuple[int, ...] = ()
    """Global index of the element with the largest difference."""
    actual: float = 0.0
    expected: float = 0.0
    different: int = 0
    """Elements that are not equal bit by bit."""


@dataclass(frozen=True, kw_only=True)
class Distance:
    """The deviation of a tensor from the reference on the rank where it is largest, relative to the reference."""

    key: str
    rank: int
    index: tuple[int, ...]
    actual: float
    expected: float
    relative: float
    different: int
    """Elements that are not equal bit by bit, over all ranks."""


@dataclass(frozen=True, kw_only=True)
class HeldBoxes:
    """The boxes of one tensor that a rank holds: their places, without values."""

    key: str
    shape: tuple[int, ...]
    boxes: tuple[Box, ...]
    owned: bool


def measure(key: str, rank: int, parts: Iterable[tuple[Box, Array, Array]]) -> Deviation:
    """Return the deviation of one rank's parts (box, actual, expected) of the tensor `key`."""
    largest, different = 0.0, 0
    worst = Deviation(key=key, rank=rank, largest=0.0)
    for box, actual, expected in parts:
        if not box.size:
            continue
        with np.errstate(invalid="ignore"):
            gaps = np.abs(actual - expected)
        gaps = np.where(
            np.isfinite(gaps) | (actual == expected) | (np.isnan(actual) & np.isnan(expected)), gaps, np.inf
        )
        gaps = np.nan_to_num(gaps, nan=0.0, posinf=np.inf)
        different += int((actual.view(np.int64) != expected.view(np.int64)).sum())
        largest = max(largest, float(np.max(np.abs(expected), where=np.isfinite(expected), initial=0.0)))
        at = np.unravel_index(int(gaps.argmax()), gaps.shape)
        if float(gaps[at]) > worst.absolute or not worst.index:
            worst = Deviation(
                key=key,
                rank=rank,
                largest=0.0,
                absolute=float(gaps[at]),
                index=tuple(int(i) + start for i, start in zip(at, box.offset, strict=True)),
                actual=float(actual[at]),
                expected=float(expected[at]),
            )
    return Deviation(**{**vars(worst), "largest": largest, "different": different})


def distances(deviations: Iterable[Deviation], order: Iterable[str] = ()) -> list[Distance]:
    """Return one distance for each tensor from the deviations of all ranks.

    Tensors in `order` come first, in that order, then the others in the order of the model.
    """
    by_key: dict[str, list[Deviation]] = {}
    for deviation in deviations:
        by_key.setdefault(deviation.key, []).append(deviation)
    scales = {key: max(of_rank.largest for of_rank in ranks) for key, ranks in by_key.items()}
    floor = FLOOR * max(scales.values(), default=0.0)
    found = []
    for key in dict.fromkeys((*(key for key in order if key in by_key), *in_model_order(by_key))):
        worst = max(by_key[key], key=lambda deviation: (deviation.absolute, -deviation.rank))
        found.append(
            Distance(
                key=key,
                rank=worst.rank,
                index=worst.index,
                actual=worst.actual,
                expected=worst.expected,
                relative=ratio(worst.absolute, max(scales[key], floor)),
                different=sum(deviation.different for deviation in by_key[key]),
            )
        )
    return found


def ratio(absolute: float, scale: float) -> float:
    """Return `absolute / scale`: 0 for no difference, whatever the scale, and infinity for a difference at scale 0."""
    if absolute == 0.0:
        return 0.0
    return absolute / scale if scale > 0.0 else math.inf


def relative_difference(actual: float, expected: float) -> float:
    """Return |actual - expected| / |expected|; infinite where only one of the two is finite."""
    if actual == expected or (math.isnan(actual) and math.isnan(expected)):
        return 0.0
    gap = abs(actual - expected)
    return ratio(gap, abs(expected)) if math.isfinite(gap) else math.inf


def in_model_order(keys: Iterable[str]) -> list[str]:
    """Sort parameter names by layer, `layers.2` before `layers.10`; names within a layer keep their order."""

    def layer(key: str) -> list[tuple[int, int, str]]:
        parts = key.split(".")
        end = next((place for place, part in enumerate(parts, 1) if part.isdigit()), 0)
        return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts[:end]]

    return sorted(keys, key=layer)


def shapes(held_by_rank: Iterable[Iterable[HeldBoxes]]) -> dict[str, tuple[int, ...]]:
    """Return the global shape of every tensor that some rank holds."""
    return {tensor.key: tensor.shape for rank in held_by_rank for tensor in rank}


def incomplete(held_by_rank: Sequence[Iterable[HeldBoxes]]) -> Iterator[tuple[str, Box]]:
    """Yield (tensor, box) for each tensor that has a part, the box, that no rank owns."""
    boxes: dict[str, list[Box]] = {}
    for rank in held_by_rank:
        for tensor in rank:
            boxes.setdefault(tensor.key, []).extend(tensor.boxes if tensor.owned else ())
    known: Mapping[str, tuple[int, ...]] = shapes(held_by_rank)
    for key in in_model_order(boxes):
        missing = uncovered(whole(known[key]), boxes[key])
        if missing:
            yield key, missing[0]
