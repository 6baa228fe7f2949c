"""Flat buffers: parameters and their gradients as views of contiguous memory, cut into buckets.

All parameters of a buffer agree in everything the optimizer asks: group, type, and the sums of their gradients. So
every later operation (reduction, norm, update, cast) is a few calls on long vectors instead of one per parameter.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import heapify, heapreplace
from math import prod
from typing import final

import torch
from torch import Tensor, nn

from scaling.core.boxes import Box, boxes_of_flat_range
from scaling.core.nn.parameter import ParameterMeta, Piece
from scaling.core.topology.layout import Layout
from scaling.core.topology.placement import Placements

ALIGNMENT = 64  # elements: 128 bytes in half precision, so that every parameter starts on a cache line
MOST_PADDING = 1 / 8  # fraction of a bucket of whole parameters, except the last


@dataclass(frozen=True)
class BufferKind:
    """What the parameters of one buffer have in common."""

    group: int
    lr_scale: float
    dtype: torch.dtype
    placements: Placements
    """In their shortest form for the layout."""

    @property
    def order(self) -> tuple[int, float, str]:
        """Return the sort key of kinds with the same placements, the same on all ranks that have them."""
        return self.group, self.lr_scale, str(self.dtype)


@dataclass(frozen=True)
class Bucket:
    """A range of a buffer that is reduced in one message."""

    start: int
    stop: int

    def slice_of(self, index: int, parts: int) -> slice:
        """Return the part of the bucket that rank `index` of `parts` owns."""
        length = (self.stop - self.start) // parts
        return slice(self.start + index * length, self.start + (index + 1) * length)


@dataclass(frozen=True)
class Placement:
    """Where a parameter lies in its buffer."""

    start: int
    stop: int
    bucket: int


def plan(sizes: Sequence[int], *, bucket_size: int, parts: int) -> tuple[list[Placement], list[Bucket]]:
    """Place parameters of the given sizes one after another and cut the buffer into buckets. Pure.

    Each parameter starts aligned. A bucket closes once it holds `bucket_size` elements, and is padded so that it
    divides into `parts` aligned slices; no parameter lies in two buckets.
    """
    placements: list[Placement] = []
    buckets: list[Bucket] = []
    start = position = 0
    for number, size in enumerate(sizes):
        placements.append(Placement(position, position + size, len(buckets)))
        position += _aligned(size)
        if position - start >= bucket_size or number == len(sizes) - 1:
            step = ALIGNMENT * parts
            position = start + -(-(position - start) // step) * step
            buckets.append(Bucket(start, position))
            start = position
    return placements, buckets


def plan_whole(sizes: Sequence[int], *, bucket_size: int, parts: int) -> tuple[list[Placement], list[Bucket]]:
    """Place parameters so that each lies in one of the `parts` equal slices of its bucket. Pure.

    A bucket closes once it holds `bucket_size` elements and at most an eighth of the bucket is padding. The remaining
    parameters are the last bucket, whose padding is less than `parts` times its largest parameter: little for many
    parameters, much where there are fewer than `parts`.
    """
    placements: list[Placement] = []
    buckets: list[Bucket] = []
    start = total = largest = 0
    held: list[int] = []
    for number, size in enumerate(sizes):
        held.append(_aligned(size))
        total, largest = total + held[-1], max(largest, held[-1])
        more = number < len(sizes) - 1
        if more and (total < bucket_size or _too_padded(largest, parts, total)):
            continue
        length, dealt = _deal(held, parts)
        if more and _too_padded(length, parts, total):
            continue
        for part, offset in dealt:
            position = start + part * length + offset
            placements.append(Placement(position, position + sizes[len(placements)], len(buckets)))
        buckets.append(Bucket(start, start + length * parts))
        start, total, largest = buckets[-1].stop, 0, 0
        held = []
    return placements, buckets


def _too_padded(length: int, parts: int, total: int) -> bool:
    """Return whether `total` elements in `parts` slices of `length`, or of more, leave too much padding."""
    return length * parts - total > length * parts * MOST_PADDING


def _deal(sizes: Sequence[int], parts: int) -> tuple[int, list[tuple[int, int]]]:
    """Give each size, the largest first, to the part with the least; return the largest sum and each (part, offset).

    No part has more than an equal share of the sum plus the largest size (Graham, SIAM J. Appl. Math. 17, 1969).
    """
    loads = [(0, part) for part in range(parts)]
    heapify(loads)
    dealt: dict[int, tuple[int, int]] = {}
    for number in sorted(range(len(sizes)), key=lambda number: -sizes[number]):
        load, part = loads[0]
        dealt[number] = (part, load)
        heapreplace(loads, (load + sizes[number], part))
    return max(loads)[0], [dealt[number] for number in range(len(sizes))]


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def master_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the type in which weights of a type are updated: never less than float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def gradient_dtype(dtype: torch.dtype, asked: torch.dtype = torch.float32) -> torch.dtype:
    """Return the type in which gradients of weights of a type are summed and sent: float64 stays, else as asked."""
    return torch.float64 if dtype == torch.float64 else asked


@final
class FlatBuffer:
    """Parameters of one kind, their gradients, and where each lies.

    Taking parameters into a buffer moves their values there; `parameter.data` and `parameter.grad` are views from then
    on, and backward passes add to the gradient in `grad_dtype` (float64 for float64) whatever the parameter's type.
    """

    def __init__(
        self,
        kind: BufferKind,
        parameters: Sequence[tuple[nn.Parameter, ParameterMeta]],
        *,
        bucket_size: int,
        parts: int,
        whole: bool = False,
        grad_dtype: torch.dtype = torch.float32,
    ) -> None:
        self.kind = kind
        self.parameters = tuple(parameters)
        self.placements, self.buckets = (plan_whole if whole else plan)(
            [parameter.numel() for parameter, _ in parameters], bucket_size=bucket_size, parts=parts
        )
        device = parameters[0][0].device
        total = self.buckets[-1].stop
        self.weights = torch.zeros(total, dtype=kind.dtype, device=device)
        self.gradients = torch.zeros(total, dtype=gradient_dtype(kind.dtype, grad_dtype), device=device)
        for (parameter, _), place in zip(self.parameters, self.placements, strict=True):
            view = self.weights[place.start : place.stop].view(parameter.shape)
            view.copy_(parameter.detach())
            parameter.data = view
            if kind.dtype != self.gradients.dtype:
                parameter.grad_dtype = self.gradients.dtype
            parameter.grad = self.gradients[place.start : place.stop].view(parameter.shape)

    def boxes(self, owned: slice, values: Tensor) -> Iterator[tuple[Piece, list[tuple[Box, Tensor]]]]:
        """Yield every piece of a parameter with the boxes of its global tensor that a range of the buffer covers.

        `values` holds the range `owned`; the boxes' tensors are views of it. Padding belongs to no box.
        """
        for (parameter, description), place in zip(self.parameters, self.placements, strict=True):
            start, stop = max(owned.start, place.start), min(owned.stop, place.stop)
            covered = values[start - owned.start : max(start, stop) - owned.start]
            runs = list(boxes_of_flat_range(tuple(parameter.shape), start - place.start, stop - place.start))
            for piece in description.pieces:
                local = Box(piece.place, piece.box.shape)
                found = []
                for run, position in runs:
                    if (inside := run.intersect(local)) is not None:
                        first = position - (start - place.start)
                        view = covered[first : first + run.size].view(run.shape)
                        found.append((inside.inside(local).within(piece.box), view[inside.slices(run)]))
                yield piece, found


def left_out(ranges: Iterable[slice], length: int) -> list[slice]:
    """Return the gaps between these ranges, which are in order and do not overlap, within a length. Pure."""
    found, position = [], 0
    for one in (*ranges, slice(length, length)):
        if position < one.start:
            found.append(slice(position, one.start))
        position = one.stop
    return found


def build_buffers(
    groups: Sequence[Sequence[tuple[nn.Parameter, ParameterMeta]]],
    layout: Layout,
    *,
    bucket_size: int,
    whole: Container[int] = (),
    grad_dtype: torch.dtype = torch.float32,
) -> list[FlatBuffer]:
    """Return the buffers of all groups: parameters sorted by kind, within a kind from the last layer to the first.

    Gradients become complete from the last layer on, so the first bucket can be reduced while the rest is computed.
    Where ranks with other layers hold the same parameters, these are sorted by name instead, which is the same order on
    all of them. In the groups whose numbers are in `whole`, no parameter is cut by the slices of a bucket.
    """
    by_kind: dict[BufferKind, list[tuple[nn.Parameter, ParameterMeta]]] = {}
    for number, parameters in enumerate(groups):
        for parameter, description in reversed(list(parameters)):
            placements = description.placements.within(layout)
            kind = BufferKind(number, description.lr_scale, parameter.dtype, placements)
            by_kind.setdefault(kind, []).append((parameter, description))
    for kind, parameters in by_kind.items():
        if any(placement.indices is not None for placement in kind.placements.along):
            parameters.sort(key=lambda entry: entry[1].name)
    return [
        FlatBuffer(
            kind,
            parameters,
            bucket_size=bucket_size,
            parts=prod(map(layout.size, kind.placements.batch_axes(layout))),
            whole=kind.group in whole,
            grad_dtype=grad_dtype,
        )
        for kind, parameters in by_kind.items()
    ]


def places(buffers: Iterable[FlatBuffer]) -> Mapping[nn.Parameter, tuple[int, int]]:
    """Return (buffer, bucket) of every parameter."""
    return {
        parameter: (number, place.bucket)
        for number, buffer in enumerate(buffers)
        for (parameter, _), place in zip(buffer.parameters, buffer.placements, strict=True)
    }
