"""Messages between processes of one machine, through shared memory instead of its loopback network.

A sender has buffers in files in memory; the receiver maps each file when it first meets it. The sender copies a message
into a free buffer, writes into the mailbox which buffer that is, and continues at once; if none is free, it allocates
more. The receiver copies the message out and gives the buffer back.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import secrets
import struct
from collections import deque
from dataclasses import dataclass
from typing import Final, final

import torch
import torch.distributed as dist
from torch import Tensor
from typing_extensions import Self

from scaling.core.collectives.shared_memory import (
    PREAMBLE_BYTES,
    SEMAPHORE_BYTES,
    CallQueue,
    DeferredCall,
    SharedMemory,
    as_bytes,
    create_file,
    map_file,
    open_memory,
)
from scaling.core.errors import ScheduleError, StorageError

MOST_MESSAGES: Final = 256
"""Limit on messages sent but not yet received; at the limit, the sender waits."""

_BUFFERS: Final = 16
"""Buffers in one file. Several, since memory that nobody has touched costs nothing and a process may open few files."""

_READY: Final = 4
"""Free buffers of a size that keep their memory."""

_ENTRY: Final = struct.Struct("qqqqqq")
"""The file's number, its descriptor in the sender's process, the number it begins with and its bytes; the start of the
message in the file, and its bytes."""
_ENTRY_BYTES: Final = 64


@final
class _File:
    """Memory of some buffers of one size, after a page with the number that the file begins with."""

    def __init__(self, number: int, size: int) -> None:
        self.number, self.token = number, secrets.randbits(62)
        self.bytes = mmap.PAGESIZE + _BUFFERS * size
        self.descriptor = create_file(self.token, self.bytes)
        """Open until the receiver has mapped the memory. None: closed, or the file could not be created."""
        self.memory = (
            None if self.descriptor is None else map_file(os.getpid(), self.descriptor, self.token, self.bytes)
        )

    def close(self) -> None:
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None


@final
@dataclass(frozen=True)
class _Buffer:
    file: _File
    start: int
    content: Tensor

    @property
    def size(self) -> int:
        return self.content.numel()

    def discard(self) -> None:
        """Return the memory to the system; the buffer remains usable."""
        if self.file.memory is not None and hasattr(mmap, "MADV_REMOVE"):
            self.file.memory.madvise(mmap.MADV_REMOVE, self.start, self.size)


@final
class Mailboxes:
    """One rank's messages to and from the others of a group. Between two ranks, messages arrive in the order sent."""

    def __init__(self, memory: SharedMemory) -> None:
        self.memory = memory
        self._from = {other: _Received(memory, other) for other in memory.others}
        self._to = {other: _Sent(memory, other) for other in memory.others}

    @classmethod
    def open(cls, group: dist.ProcessGroup) -> Self | None:
        """Return this rank's mailboxes; None, on all ranks, where one cannot have them. Collective: the group."""
        size = group.size()
        memory = open_memory(group, _mailbox(size, size**2), semaphores=(PREAMBLE_BYTES, 2 * size**2))
        return None if memory is None else cls(memory)

    def send(self, x: Tensor, to: int) -> None:
        """Send a copy of `x` to rank `to`; `x` may be changed as soon as this returns."""
        self._to[to].send(x)

    def receive_later(self, x: Tensor, source: int) -> DeferredCall:
        """Return a call that fills `x` with the next message from rank `source`."""
        box = self._from[source]
        return box.calls.defer(lambda: box.receive(x))

    def close(self) -> None:
        """Release the buffers."""
        for box in self._to.values():
            box.close()
        self._from.clear()
        self._to.clear()
        self.memory.close()


@final
class _Sent:
    """The mailbox from this rank to another one."""

    def __init__(self, memory: SharedMemory, other: int) -> None:
        self._memory, self._other = memory, other
        self._there, self._back = _semaphores(memory, memory.rank, other)
        self._entries = _mailbox(memory.size, memory.rank * memory.size + other)
        self._count = 0
        """Number of messages sent so far."""
        self.files = 0
        self._away: deque[_Buffer] = deque()
        """Buffers sent and not given back, in order."""
        self._free: dict[int, list[_Buffer]] = {}
        """Free buffers by size. The one given back last is taken first."""

    def send(self, x: Tensor) -> None:
        message = as_bytes(x.contiguous())
        size = message.numel()
        while self._away and self._memory.try_wait(self._back):
            self._take_back()
        while len(self._away) == MOST_MESSAGES or (buffer := self._found(size)) is None:
            if not self._away:
                raise StorageError(
                    f"there is no memory, or no file descriptor (ulimit -n), for a message of {size} bytes between two "
                    "processes of this machine; give it more, or set topology.shared_memory to false"
                )
            self._memory.wait_for(self._other, self._back)
            self._take_back()
        buffer.content[:size].copy_(message)
        file, at = buffer.file, self._entries + self._count % MOST_MESSAGES * _ENTRY_BYTES
        where = -1 if file.descriptor is None else file.descriptor
        _ENTRY.pack_into(self._memory.memory, at, file.number, where, file.token, file.bytes, buffer.start, size)
        self._count += 1
        self._away.append(buffer)
        self._memory.post(self._there)

    def _take_back(self) -> None:
        buffer = self._away.popleft()
        buffer.file.close()
        free = self._free.setdefault(buffer.size, [])
        if len(free) >= _READY:
            buffer.discard()
        free.append(buffer)

    def _found(self, size: int) -> _Buffer | None:
        """Return a free buffer, its size the next power of two; None where there is no memory for more buffers."""
        size = max(mmap.PAGESIZE, 1 << max(size - 1, 0).bit_length())
        free = self._free.setdefault(size, [])
        if not free:
            file = _File(self.files, size)
            if file.memory is None:
                file.close()
                return None
            self.files += 1
            everything = torch.frombuffer(file.memory, dtype=torch.uint8)
            starts = range(mmap.PAGESIZE, file.bytes, size)
            free += [_Buffer(file, start, everything[start : start + size]) for start in reversed(starts)]
        return free.pop()

    def close(self) -> None:
        for buffer in self._away:
            buffer.file.close()


@final
class _Received:
    """The mailbox from another rank to this one."""

    def __init__(self, memory: SharedMemory, other: int) -> None:
        self.calls = CallQueue()
        self._memory, self._other = memory, other
        self._there, self._back = _semaphores(memory, other, memory.rank)
        self._entries = _mailbox(memory.size, other * memory.size + memory.rank)
        self._count = 0
        self._files: dict[int, Tensor] = {}

    def receive(self, x: Tensor) -> None:
        memory = self._memory
        memory.wait_for(self._other, self._there)
        at = self._entries + self._count % MOST_MESSAGES * _ENTRY_BYTES
        number, descriptor, token, length, start, size = _ENTRY.unpack_from(memory.memory, at)
        self._count += 1
        into = as_bytes(x)
        if size != into.numel():
            raise ScheduleError(
                f"rank {self._other} of a group sent a message of {size} bytes where rank {memory.rank} expects one of "
                f"{into.numel()}; let both follow one schedule, with one shape of micro-batches"
            )
        if number not in self._files:
            mapped = map_file(memory.pids[self._other], descriptor, token, length)
            if mapped is None:
                raise dist.DistNetworkError(
                    f"Connection closed: a message of rank {self._other} of a group of {memory.size} cannot be opened, "
                    "for its process has ended, or this one has too many files open (ulimit -n)"
                )
            self._files[number] = torch.frombuffer(mapped, dtype=torch.uint8)
        into.copy_(self._files[number][start : start + size])
        memory.post(self._back)


def _semaphores(memory: SharedMemory, source: int, target: int) -> tuple[ctypes.c_void_p, ctypes.c_void_p]:
    """Return two semaphores: one posted when a message is there, the other when its buffer is given back."""
    first = PREAMBLE_BYTES + 2 * (source * memory.size + target) * SEMAPHORE_BYTES
    return memory.semaphore(first), memory.semaphore(first + SEMAPHORE_BYTES)


def _mailbox(ranks: int, number: int) -> int:
    """Return where the entries of mailbox `number` (`source * ranks + target`) begin; for `ranks**2`, where all end."""
    begin = -(-(PREAMBLE_BYTES + 2 * ranks**2 * SEMAPHORE_BYTES) // mmap.PAGESIZE) * mmap.PAGESIZE
    return begin + number * MOST_MESSAGES * _ENTRY_BYTES
