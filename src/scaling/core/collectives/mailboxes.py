"""Messages between processes of one machine, through memory that they share instead of its loopback network.

A sender has buffers, each a file in memory that the receiver maps when it first meets it. It copies a message into a
free one, writes into the mailbox which one it is, and goes on at once; with none free it makes another. The receiver
copies the message out and gives the buffer back.
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
    MOST_RANKS,
    PREAMBLE_BYTES,
    SEMAPHORE_BYTES,
    Calls,
    Later,
    SharedMemory,
    as_bytes,
    create_file,
    map_file,
    open_memory,
)
from scaling.core.errors import ScheduleError, StorageError

MOST_MESSAGES: Final = 256
"""How many may be sent and not received; then the sender waits. Each may have a buffer, and so an open file."""

_LETTER: Final = struct.Struct("qqqqq")
"""The buffer's number, its descriptor in the sender's process, what its file begins with, its bytes, the message's."""
_LETTER_BYTES: Final = 64
_NUMBER_BYTES: Final = 64  # what a buffer's file begins with


@final
@dataclass
class _Buffer:
    number: int
    token: int
    descriptor: int | None
    """Open until the receiver has the memory."""
    content: Tensor

    @property
    def size(self) -> int:
        return self.content.numel()

    def close(self) -> None:
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None


@final
class Mailboxes:
    """One rank's messages to and from the others of a group. Between two ranks they arrive in the order of sending."""

    def __init__(self, memory: SharedMemory) -> None:
        self.memory = memory
        self._from = {other: _Received(memory, other) for other in memory.others}
        self._to = {other: _Sent(memory, other) for other in memory.others}

    @classmethod
    def open(cls, group: dist.ProcessGroup) -> Self | None:
        """Return this rank's mailboxes; None, on all ranks, where one cannot have them. Collective: the group."""
        size = group.size()
        if not 1 < size <= MOST_RANKS:
            return None
        memory = open_memory(group, _mailbox(size, size**2), semaphores=(PREAMBLE_BYTES, 2 * size**2))
        return None if memory is None else cls(memory)

    def send(self, x: Tensor, to: int) -> None:
        """Hand `x` over to rank `to`; it may be changed at once."""
        self._to[to].send(x)

    def receive_later(self, x: Tensor, source: int) -> Later:
        """Return a call that fills `x` with the next message from rank `source`."""
        box = self._from[source]
        return box.calls.later(lambda: box.receive(x))

    def close(self) -> None:
        """Give up the buffers."""
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
        self._letters = _mailbox(memory.size, memory.rank * memory.size + other)
        self._count = self._made = 0
        """Messages and buffers so far."""
        self._away: deque[_Buffer] = deque()
        """Sent and not given back, in order."""
        self._free: list[_Buffer] = []

    def send(self, x: Tensor) -> None:
        message = as_bytes(x.contiguous())
        size = message.numel()
        while self._away and self._memory.is_told(self._back):
            self._take_back()
        while len(self._away) == MOST_MESSAGES or (buffer := self._found(size)) is None:
            if not self._away:
                raise StorageError(
                    f"there is no memory for a message of {size} bytes between two processes of this machine; give it "
                    "more, or set topology.shared_memory to false"
                )
            self._memory.wait_for(self._other, self._back)
            self._take_back()
        buffer.content[:size].copy_(message)
        at = self._letters + self._count % MOST_MESSAGES * _LETTER_BYTES
        where = -1 if buffer.descriptor is None else buffer.descriptor
        _LETTER.pack_into(self._memory.memory, at, buffer.number, where, buffer.token, buffer.size, size)
        self._count += 1
        self._away.append(buffer)
        self._memory.tell(self._there)

    def _take_back(self) -> None:
        buffer = self._away.popleft()
        buffer.close()
        self._free.append(buffer)

    def _found(self, size: int) -> _Buffer | None:
        """Return the smallest free buffer that is large enough, or a new one; None where there is no memory for it."""
        fitting = [number for number, buffer in enumerate(self._free) if buffer.size >= size]
        if fitting:
            return self._free.pop(min(fitting, key=lambda number: self._free[number].size))
        length = -(-max(size, 1) // mmap.PAGESIZE) * mmap.PAGESIZE
        token = secrets.randbits(62)
        if (descriptor := create_file(token, _NUMBER_BYTES + length)) is None:
            return None
        if (memory := map_file(os.getpid(), descriptor, token, _NUMBER_BYTES + length)) is None:
            os.close(descriptor)
            return None
        self._made += 1
        return _Buffer(self._made, token, descriptor, torch.frombuffer(memory, dtype=torch.uint8)[_NUMBER_BYTES:])

    def close(self) -> None:
        for buffer in self._away:
            buffer.close()


@final
class _Received:
    """The mailbox from another rank to this one."""

    def __init__(self, memory: SharedMemory, other: int) -> None:
        self.calls = Calls()
        self._memory, self._other = memory, other
        self._there, self._back = _semaphores(memory, other, memory.rank)
        self._letters = _mailbox(memory.size, other * memory.size + memory.rank)
        self._count = 0
        self._buffers: dict[int, Tensor] = {}

    def receive(self, x: Tensor) -> None:
        memory = self._memory
        memory.wait_for(self._other, self._there)
        at = self._letters + self._count % MOST_MESSAGES * _LETTER_BYTES
        number, descriptor, token, length, size = _LETTER.unpack_from(memory.memory, at)
        self._count += 1
        into = as_bytes(x)
        if size != into.numel():
            raise ScheduleError(
                f"rank {self._other} of a group sent a message of {size} bytes where rank {memory.rank} expects one of "
                f"{into.numel()}; let both follow one schedule, with one shape of micro-batches"
            )
        if number not in self._buffers:
            mapped = map_file(memory.pids[self._other], descriptor, token, _NUMBER_BYTES + length)
            if mapped is None:
                raise dist.DistNetworkError(
                    f"Connection closed: rank {self._other} of a group of {memory.size} has given up its messages"
                )
            self._buffers[number] = torch.frombuffer(mapped, dtype=torch.uint8)[_NUMBER_BYTES:]
        into.copy_(self._buffers[number][:size])
        memory.tell(self._back)


def _semaphores(memory: SharedMemory, source: int, target: int) -> tuple[ctypes.c_void_p, ctypes.c_void_p]:
    """Return what tells that a message is there, and that its buffer is given back."""
    first = PREAMBLE_BYTES + 2 * (source * memory.size + target) * SEMAPHORE_BYTES
    return memory.semaphore(first), memory.semaphore(first + SEMAPHORE_BYTES)


def _mailbox(ranks: int, number: int) -> int:
    """Return where the letters of a mailbox begin: number `source * ranks + target`; after the last one, the end."""
    begin = -(-(PREAMBLE_BYTES + 2 * ranks**2 * SEMAPHORE_BYTES) // mmap.PAGESIZE) * mmap.PAGESIZE
    return begin + number * MOST_MESSAGES * _LETTER_BYTES
