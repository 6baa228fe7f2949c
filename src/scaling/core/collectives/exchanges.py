"""Collectives between processes of one machine, through shared memory instead of its loopback network.

Every collective is a series of exchanges. In an exchange, each rank writes up to a mebibyte into a slot of its own,
posts a semaphore for each other rank, waits for theirs, and reads their slots. Each rank has two slots, used in turn: a
rank that has posted in an exchange has read all slots of the exchange before, so that these may be written again.

Two processes sum 1 MiB in 0.2 ms where gloo takes 1.4 ms, and one number in 40 microseconds instead of 300.
"""

from __future__ import annotations

import itertools
import mmap
import struct
from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import Final, final
from weakref import WeakValueDictionary

import torch
import torch.distributed as dist
from torch import Tensor
from typing_extensions import Self

from scaling.core.collectives.observed import observed
from scaling.core.collectives.shared_memory import (
    MOST_RANKS,
    PREAMBLE_BYTES,
    SEMAPHORE_BYTES,
    CallQueue,
    SharedMemory,
    open_memory,
)
from scaling.core.errors import LayoutError
from scaling.core.waiting import waits

SLOT_BYTES: Final = 2**20

_LABEL: Final = struct.Struct("qqq")
_LABEL_BYTES: Final = 64
_SLOTS_FROM: Final = -(-(PREAMBLE_BYTES + MOST_RANKS**2 * SEMAPHORE_BYTES) // mmap.PAGESIZE) * mmap.PAGESIZE

_handles = itertools.count()
_by_handle: WeakValueDictionary[int, Exchanges] = WeakValueDictionary()
"""Operators accept tensors and numbers only. Each collective is one operator, so that dispatch modes see it whole."""


class Collective(IntEnum):
    """The kinds of collectives: ranks compare them, so that an error names the mistake."""

    ALL_REDUCE = 1
    REDUCE_SCATTER = 2
    ALL_GATHER = 3
    BROADCAST = 4


@final
class Exchanges:
    """One rank's part in the collectives of a group.

    All ranks must make the same calls in the same order. A call returns when this rank's part is done.
    """

    def __init__(self, memory: SharedMemory) -> None:
        self.rank, self.size = rank, size = memory.rank, memory.size
        self.memory = memory
        self.handle = next(_handles)
        _by_handle[self.handle] = self
        self._post = [memory.semaphore(_semaphore(size, rank, other)) for other in memory.others]
        self._wait = [(other, memory.semaphore(_semaphore(size, other, rank))) for other in memory.others]
        self._labels = [[_slot(one, turn) for turn in range(2)] for one in range(size)]
        """Offsets of each rank's labels, by turn. Each label lies directly before its slot."""
        self._slots = [
            [memory.bytes[label + _LABEL_BYTES : label + _LABEL_BYTES + SLOT_BYTES] for label in of]
            for of in self._labels
        ]
        self._exchanges = 0
        self._calls = CallQueue()
        self.defer = self._calls.defer

    @classmethod
    def open(cls, group: dist.ProcessGroup) -> Self | None:
        """Return this rank's part; None, on all ranks, where one of them cannot take part. Collective: the group."""
        size = group.size()
        memory = open_memory(group, _slot(size, 0), semaphores=(PREAMBLE_BYTES, size**2))
        return None if memory is None else cls(memory)

    def now(self) -> Self:
        """Return this object after making all deferred calls."""
        self._calls.run_until()
        return self

    def all_reduce(self, x: Tensor, *, maximum: bool = False) -> None:
        """Sum `x` in place and in the order of the ranks, or take the maximum, which keeps NaN; gloo's may not."""
        torch.ops.scaling_shared_memory.all_reduce_.default(x, self.handle, maximum)

    def reduce_scatter(self, output: Tensor, x: Tensor) -> None:
        """Sum `x` in the order of the ranks, each keeping its equal slice in `output`, which may be a part of `x`."""
        torch.ops.scaling_shared_memory.reduce_scatter_.default(output, x, self.handle)

    def all_gather(self, output: Tensor, x: Tensor) -> None:
        """Join the `x` of all ranks in `output`; `x` may be this rank's part of `output`."""
        torch.ops.scaling_shared_memory.all_gather_.default(output, x, self.handle)

    def broadcast(self, x: Tensor, source: int) -> None:
        """Overwrite `x` with the `x` of rank `source`."""
        torch.ops.scaling_shared_memory.broadcast_.default(x, self.handle, source)

    def _all_reduce(self, x: Tensor, maximum: bool) -> None:
        flat, join = x.reshape(-1), torch.maximum if maximum else torch.add
        for part in _parts(flat):
            slots = self._exchange(Collective.ALL_REDUCE, flat, part)
            join(slots[0], slots[1], out=part)
            for slot in slots[2:]:
                join(part, slot, out=part)
        if not x.is_contiguous():
            x.copy_(flat.view_as(x))

    def _reduce_scatter(self, output: Tensor, x: Tensor) -> None:
        slices, own = x.view(self.size, output.numel()), output.view(-1)
        for columns in _columns(slices):  # each exchange takes a piece of every slice
            given, part = slices[:, columns], own[columns]
            slots = [slot.view_as(given) for slot in self._exchange(Collective.REDUCE_SCATTER, x, given)]
            torch.add(slots[0][self.rank], slots[1][self.rank], out=part)
            for slot in slots[2:]:
                part.add_(slot[self.rank])

    def _all_gather(self, output: Tensor, x: Tensor) -> None:
        rows = output.view(self.size, x.numel())
        if rows[self.rank].data_ptr() != x.data_ptr():
            rows[self.rank].view_as(x).copy_(x)
        own = rows[self.rank]
        for parts in zip(*map(_parts, rows), strict=True):
            slots = self._exchange(Collective.ALL_GATHER, own, parts[self.rank])
            for other in self.memory.others:
                parts[other].copy_(slots[other])

    def _broadcast(self, x: Tensor, source: int) -> None:
        flat = x.reshape(-1)
        for part in _parts(flat):
            slots = self._exchange(Collective.BROADCAST, flat, part, gives=self.rank == source)
            if self.rank != source:
                part.copy_(slots[source])
        if not x.is_contiguous():
            x.copy_(flat.view_as(x))

    def _exchange(self, what: Collective, whole: Tensor, part: Tensor, *, gives: bool = True) -> list[Tensor]:
        """Return the flat contribution of each rank, by rank; this rank's is `part`, if it `gives`.

        The result is valid until the next exchange. `part` is a part of `whole`, whose size all ranks compare.
        """
        turn = self._exchanges % 2
        self._exchanges += 1
        size = part.numel() * part.element_size()
        slots = [of[turn][:size].view(part.dtype) for of in self._slots]
        if gives:
            slots[self.rank].view(part.shape).copy_(part)
        label = (what, self._exchanges, whole.numel() * whole.element_size())
        memory = self.memory
        _LABEL.pack_into(memory.memory, self._labels[self.rank][turn], *label)
        for semaphore in self._post:
            memory.post(semaphore)
        for other, semaphore in self._wait:
            memory.wait_for(other, semaphore)
            if (theirs := _LABEL.unpack_from(memory.memory, self._labels[other][turn])) != label:
                raise LayoutError(
                    f"ranks of a group do not communicate alike: rank {self.rank} of it is in {_said(label)}, rank "
                    f"{other} in {_said(theirs)}; let all of them call the same functions in the same order, on "
                    "tensors of one size"
                )
        return slots


def _semaphore(ranks: int, source: int, target: int) -> int:
    return PREAMBLE_BYTES + (source * ranks + target) * SEMAPHORE_BYTES


def _slot(rank: int, turn: int) -> int:
    return _SLOTS_FROM + (2 * rank + turn) * (_LABEL_BYTES + SLOT_BYTES)


def _parts(flat: Tensor) -> Sequence[Tensor]:
    return flat.chunk(-(-flat.numel() * flat.element_size() // SLOT_BYTES) or 1)


def _columns(slices: Tensor) -> Iterator[slice]:
    ranks, length = slices.shape
    step = SLOT_BYTES // slices.element_size() // ranks
    return (slice(start, min(start + step, length)) for start in range(0, length, step))


def _said(label: tuple[int, int, int]) -> str:
    what, exchange, size = label
    names = {one.value: one.name.lower() for one in Collective}
    return f"{names.get(what, what)} of {size} bytes (exchange {exchange})"


@waits
@observed
def _all_reduce(x: Tensor, handle: int, maximum: bool) -> None:
    _by_handle[handle]._all_reduce(x.detach(), maximum)


@waits
@observed
def _reduce_scatter(output: Tensor, x: Tensor, handle: int) -> None:
    _by_handle[handle]._reduce_scatter(output.detach(), x.detach())


@waits
@observed
def _all_gather(output: Tensor, x: Tensor, handle: int) -> None:
    _by_handle[handle]._all_gather(output.detach(), x.detach())


@waits
@observed
def _broadcast(x: Tensor, handle: int, source: int) -> None:
    _by_handle[handle]._broadcast(x.detach(), source)


# The operators are marked and observed as well: compiled code calls them directly, not through the functions in ops.py.
_operations = torch.library.Library("scaling_shared_memory", "FRAGMENT")
for _schema, _operation in (
    ("all_reduce_(Tensor(a!) x, int handle, bool maximum) -> ()", _all_reduce),
    ("reduce_scatter_(Tensor(a!) output, Tensor x, int handle) -> ()", _reduce_scatter),
    ("all_gather_(Tensor(a!) output, Tensor x, int handle) -> ()", _all_gather),
    ("broadcast_(Tensor(a!) x, int handle, int source) -> ()", _broadcast),
):
    _operations.define(_schema)
    _operations.impl(_schema.split("(")[0], _operation, "CPU")
