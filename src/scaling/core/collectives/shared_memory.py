"""Collectives between processes of one machine, through memory that they share instead of its loopback network.

Every collective is a row of exchanges. In one, each rank writes up to a mebibyte into a slot of its own, tells the
others, waits until all have told, and reads theirs. Each rank has two slots and uses them in turn: who has told of an
exchange has read all of the one before, whose slots may be written again.

Two processes sum 1 MiB in 0.2 ms where gloo takes 1.4, and one number in 25 microseconds instead of 270. Linux only.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import itertools
import mmap
import os
import secrets
import select
import struct
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from enum import IntEnum
from typing import Final, final
from weakref import WeakValueDictionary

import torch
import torch.distributed as dist
from torch import Tensor

from scaling.core.errors import LayoutError
from scaling.core.waiting import waits

MOST_RANKS: Final = 8
"""Each rank reads what all others write, so that with many a ring of messages would be faster."""

SLOT_BYTES: Final = 2**20
_SPINS: Final = 200
"""Looks at a semaphore before its rank sleeps: about as long as waking up takes."""
_PATIENCE: Final = 0.5
"""Seconds of sleep after which a rank looks whether the others are alive."""

_SEMAPHORE_BYTES: Final = 64  # sem_t has 32 on all of Linux; a cache line each
_LABEL: Final = struct.Struct("qqq")
_LABEL_BYTES: Final = 64
_NUMBER: Final = struct.Struct("q")
_PREAMBLE: Final = struct.Struct(f"q{MOST_RANKS}q")
"""A number that only these ranks know, and their process IDs."""
_PREAMBLE_BYTES: Final = 128
_SLOTS_FROM: Final = -(-(_PREAMBLE_BYTES + MOST_RANKS**2 * _SEMAPHORE_BYTES) // mmap.PAGESIZE) * mmap.PAGESIZE


_numbers = itertools.count()
_by_number: WeakValueDictionary[int, SharedMemory] = WeakValueDictionary()
"""For operations, which take numbers: each collective is one, so that the modes of dispatch see it as one."""


class Collective(IntEnum):
    """What ranks do together: they compare it, so that a mistake is named."""

    ALL_REDUCE = 1
    REDUCE_SCATTER = 2
    ALL_GATHER = 3
    BROADCAST = 4


class _Deadline(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


@final
class SharedMemory:
    """One rank's view of the memory of a group, of which it is rank `rank` of `size`.

    All ranks must make the same calls in the same order. A call returns when this rank's part is done.
    """

    def __init__(self, memory: mmap.mmap, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self.number = next(_numbers)
        _by_number[self.number] = self
        self._memory = memory
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        self._library = ctypes.CDLL(None, use_errno=True)
        self._others = [other for other in range(size) if other != rank]
        self._tell = [self._semaphore(rank, other) for other in self._others]
        self._told = [(other, self._semaphore(other, rank)) for other in self._others]
        everything = torch.frombuffer(memory, dtype=torch.uint8)
        starts = [[_slot(one, turn) for turn in range(2)] for one in range(size)]
        self._labels = starts
        """Where each rank's labels are, by turn. Each stands before its slot."""
        self._slots = [
            [everything[start + _LABEL_BYTES : start + _LABEL_BYTES + SLOT_BYTES] for start in of] for of in starts
        ]
        self._exchanges = 0
        self._lives: list[tuple[int, int]] = []
        """(rank, file descriptor that becomes readable when its process ends) of the others."""
        self._waiting: deque[Later] = deque()

    def _semaphore(self, source: int, target: int) -> ctypes.c_void_p:
        return ctypes.c_void_p(self._address + _PREAMBLE_BYTES + (source * self.size + target) * _SEMAPHORE_BYTES)

    def prepare(self) -> None:
        """Set all semaphores to zero. Rank 0, before the others look."""
        for source in range(self.size):
            for target in range(self.size):
                self._library.sem_init(self._semaphore(source, target), 1, 0)

    def watch(self) -> None:
        """Find out from now on when the process of another rank ends. All have written their process IDs."""
        _, *pids = _PREAMBLE.unpack_from(self._memory)
        with contextlib.suppress(OSError, AttributeError):  # an old kernel or Python: then only the run's watch does
            self._lives = [(other, os.pidfd_open(pids[other])) for other in self._others]

    def close(self) -> None:
        """Stop watching the others. The memory goes with the last tensor that is a view of it."""
        for _, descriptor in self._lives:
            os.close(descriptor)
        self._lives = []

    def now(self) -> SharedMemory:
        """Return itself, after all calls that wait have been made."""
        if self._waiting:
            self.settle()
        return self

    def later(self, act: Callable[[], None]) -> Later:
        """Return a call that is made when somebody waits for it or for a later one, in the order of the calls."""
        self._waiting.append(made := Later(act, self))
        return made

    def settle(self, until: Later | None = None) -> None:
        """Make the calls that wait: all, or those up to one."""
        while self._waiting and (until is None or not until.done):
            self._waiting.popleft().act()

    def all_reduce(self, x: Tensor, *, maximum: bool = False) -> None:
        """Sum `x` (or take the maximum), in place and in the order of the ranks."""
        torch.ops.scaling.all_reduce_.default(x, self.number, maximum)

    def reduce_scatter(self, output: Tensor, x: Tensor) -> None:
        """Sum `x` in the order of the ranks, each keeping its equal slice in `output`, which may be a part of `x`."""
        torch.ops.scaling.reduce_scatter_.default(output, x, self.number)

    def all_gather(self, output: Tensor, x: Tensor) -> None:
        """Join the `x` of all ranks in `output`, of which it may be this rank's part."""
        torch.ops.scaling.all_gather_.default(output, x, self.number)

    def broadcast(self, x: Tensor, source: int) -> None:
        """Overwrite `x` with that of rank `source`."""
        torch.ops.scaling.broadcast_.default(x, self.number, source)

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
            for other in self._others:
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
        """Return by rank, flat, what all gave: this rank `part`, where it `gives`. Good until the exchange after next.

        `part` belongs to `whole`, whose size all ranks compare.
        """
        turn = self._exchanges % 2
        self._exchanges += 1
        size = part.numel() * part.element_size()
        slots = [of[turn][:size].view(part.dtype) for of in self._slots]
        if gives:
            slots[self.rank].view(part.shape).copy_(part)
        label = (what, self._exchanges, whole.numel() * whole.element_size())
        _LABEL.pack_into(self._memory, self._labels[self.rank][turn], *label)
        for semaphore in self._tell:
            self._library.sem_post(semaphore)
        for other, semaphore in self._told:
            self._wait(other, semaphore)
            if (theirs := _LABEL.unpack_from(self._memory, self._labels[other][turn])) != label:
                raise LayoutError(
                    f"ranks of a group do not communicate alike: rank {self.rank} of it is in {_said(label)}, rank "
                    f"{other} in {_said(theirs)}; let all of them call the same functions in the same order, on "
                    "tensors of one size"
                )
        return slots

    def _wait(self, other: int, semaphore: ctypes.c_void_p) -> None:
        for _ in range(_SPINS):
            if self._library.sem_trywait(semaphore) == 0:
                return
        while True:
            whole, part = divmod(time.time() + _PATIENCE, 1)
            deadline = _Deadline(int(whole), int(part * 1e9))
            if self._library.sem_timedwait(semaphore, ctypes.byref(deadline)) == 0:
                return
            if ctypes.get_errno() == errno.ETIMEDOUT and self._has_ended(other):
                if self._library.sem_trywait(semaphore) == 0:  # its last word
                    return
                raise dist.DistNetworkError(
                    f"Connection closed: the process of rank {other} of a group of {self.size} has ended"
                )

    def _has_ended(self, rank: int) -> bool:
        poll = select.poll()
        for other, descriptor in self._lives:
            if other == rank:
                poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(0))


@final
class Later:
    """A collective that has been called and not carried out."""

    def __init__(self, act: Callable[[], None], memory: SharedMemory) -> None:
        self._act: Callable[[], None] | None = act
        self._memory = memory

    @property
    def done(self) -> bool:
        """Whether it has been carried out."""
        return self._act is None

    def act(self) -> None:
        """Carry it out, once."""
        act, self._act = self._act, None
        if act is not None:
            act()

    @waits
    def wait(self) -> None:
        """Carry it out, after all that was called before it."""
        self._memory.settle(self)


@final
class SharedMemories:
    """The shared memory of process groups: torch's objects take no attributes, so it is kept beside them."""

    def __init__(self) -> None:
        self._of: dict[dist.ProcessGroup, SharedMemory] = {}

    def open(self, group: dist.ProcessGroup) -> None:
        """Let the group's collectives use shared memory from now on, where all its ranks can. Collective: the group."""
        if 1 < group.size() <= MOST_RANKS and (memory := _open(group)) is not None:
            self._of[group] = memory

    def of(self, group: dist.ProcessGroup) -> SharedMemory | None:
        """Return the group's shared memory; None where it has none."""
        return self._of.get(group)

    def close(self, group: dist.ProcessGroup) -> None:
        """Forget a group."""
        if (memory := self._of.pop(group, None)) is not None:
            memory.close()


@waits
def _open(group: dist.ProcessGroup) -> SharedMemory | None:
    """Return memory that all ranks of a group have; None, on all of them, where one cannot have it.

    Rank 0 makes a file without a name and says where others find it; they tell it from another machine's by a number
    at its beginning.
    """
    rank, size = group.rank(), group.size()
    token = secrets.randbits(62)
    own = _create(token, size) if rank == 0 else None
    place = torch.tensor([os.getpid(), -1 if own is None else own, token], dtype=torch.int64)
    dist.broadcast(place, group_src=0, group=group)
    pid, descriptor, token = map(int, place.tolist())
    memory = _map(own, pid, descriptor, token, size)
    agreed = torch.tensor([memory is not None], dtype=torch.int64)
    found = None
    if memory is not None:
        found = SharedMemory(memory, rank, size)
        _NUMBER.pack_into(memory, _NUMBER.size * (1 + rank), os.getpid())
        if rank == 0:
            found.prepare()
    dist.all_reduce(agreed, op=dist.ReduceOp.MIN, group=group)
    if own is not None:
        os.close(own)
    if not int(agreed) or found is None:
        return None
    found.watch()
    return found


def _create(token: int, ranks: int) -> int | None:
    if sys.platform != "linux":
        return None
    try:
        descriptor = os.memfd_create("scaling", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, _slot(ranks, 0))
        os.pwrite(descriptor, _NUMBER.pack(token), 0)
    except OSError:
        return None
    return descriptor


def _map(own: int | None, pid: int, descriptor: int, token: int, ranks: int) -> mmap.mmap | None:
    if descriptor < 0 or sys.platform != "linux":
        return None
    try:
        opened = os.open(f"/proc/{pid}/fd/{descriptor}", os.O_RDWR) if own is None else own
    except OSError:  # another machine's, or another container's
        return None
    try:
        if os.fstat(opened).st_size != _slot(ranks, 0) or os.pread(opened, _NUMBER.size, 0) != _NUMBER.pack(token):
            return None
        return mmap.mmap(opened, _slot(ranks, 0))
    except (OSError, ValueError):
        return None
    finally:
        if own is None:
            os.close(opened)


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


def _all_reduce(x: Tensor, memory: int, maximum: bool) -> None:
    _by_number[memory]._all_reduce(x.detach(), maximum)


def _reduce_scatter(output: Tensor, x: Tensor, memory: int) -> None:
    _by_number[memory]._reduce_scatter(output.detach(), x.detach())


def _all_gather(output: Tensor, x: Tensor, memory: int) -> None:
    _by_number[memory]._all_gather(output.detach(), x.detach())


def _broadcast(x: Tensor, memory: int, source: int) -> None:
    _by_number[memory]._broadcast(x.detach(), source)


_operations = torch.library.Library("scaling", "FRAGMENT")
for _schema, _operation in (
    ("all_reduce_(Tensor(a!) x, int memory, bool maximum) -> ()", _all_reduce),
    ("reduce_scatter_(Tensor(a!) output, Tensor x, int memory) -> ()", _reduce_scatter),
    ("all_gather_(Tensor(a!) output, Tensor x, int memory) -> ()", _all_gather),
    ("broadcast_(Tensor(a!) x, int memory, int source) -> ()", _broadcast),
):
    _operations.define(_schema)
    _operations.impl(_schema.split("(")[0], _operation, "CPU")
