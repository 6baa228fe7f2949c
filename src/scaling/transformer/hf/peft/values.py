"""Values: a tensor of an adapter that is loaded only when it is needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from scaling.transformer.hf.tensors import Rows


@final
@dataclass(frozen=True)
class Values:
    """A tensor by type and shape, with a function that loads it."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    load: Callable[[], Tensor]

    @staticmethod
    def of(tensor: Tensor) -> Values:
        """Return the values of a tensor that is already loaded."""
        return Values(tensor.dtype, tuple(tensor.shape), lambda: tensor)

    def shaped(self, *shape: int) -> Values:
        """Return the same values in another shape."""
        return Values(self.dtype, shape, lambda: self.load().reshape(shape))

    def to(self, dtype: torch.dtype) -> Values:
        """Return the values in another type."""
        return Values(dtype, self.shape, lambda: self.load().to(dtype))

    def times(self, factor: float) -> Values:
        """Return the values multiplied by a number."""
        return self if factor == 1.0 else Values(self.dtype, self.shape, lambda: self.load() * factor)

    def turned(self) -> Values:
        """Return the transpose of a matrix."""
        return Values(self.dtype, self.shape[::-1], lambda: self.load().t().contiguous())

    def rows(self, count: int, at: Rows | None) -> Values:
        """Return the `count` rows of this tensor of theirs that `at` assigns to ours."""
        if at is None:
            return self
        return Values(self.dtype, (count, *self.shape[1:]), lambda: self.load()[places(count, at)])


def joined(
    shape: tuple[int, ...],
    parts: Sequence[tuple[Rows | None, Values]],
    *,
    first_column: Sequence[int] = (),
    fill: float,
) -> Values:
    """Return a tensor of the rows of several parts; `fill` where no part has values.

    `first_column`: the first column of each part in theirs; without it, each part has all columns.
    """
    if len(parts) == 1 and parts[0][0] is None:
        return parts[0][1]
    dtype = parts[0][1].dtype
    for _, part in parts[1:]:
        dtype = torch.promote_types(dtype, part.dtype)

    def load() -> Tensor:
        whole = torch.full(shape, fill, dtype=dtype)
        for index, (at, part) in enumerate(parts):
            into = whole
            if first_column:
                into = whole[:, first_column[index] : first_column[index] + part.shape[1]]
            into[places(part.shape[0], at)] = part.load().to(dtype)
        return whole

    return Values(dtype, shape, load)


def stacked(parts: Sequence[Values]) -> Values:
    """Return tensors stacked along dimension 0."""
    dtype = parts[0].dtype
    for part in parts[1:]:
        dtype = torch.promote_types(dtype, part.dtype)
    rows = sum(part.shape[0] for part in parts)
    return Values(dtype, (rows, *parts[0].shape[1:]), lambda: torch.cat([part.load().to(dtype) for part in parts]))


def same(parts: Sequence[Values]) -> bool:
    """Return whether tensors are the same: type, shape and bits."""
    first = parts[0]
    if any(part.shape != first.shape or part.dtype != first.dtype for part in parts[1:]):
        return False
    values = first.load()
    return all(same_bits(values, part.load()) for part in parts[1:])


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors of one type and shape have the same bits."""
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


def places(count: int, at: Rows | None) -> Tensor:
    """Return the indices of their rows that hold our rows, in the order of ours."""
    ours = torch.arange(count)
    if at is None:
        return ours
    return at.offset + ours // at.block * at.stride + ours % at.block
