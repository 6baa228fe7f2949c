"""Memory that the processes of one machine share, with semaphores in it by which they tell each other what is there."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import secrets
import select
import struct
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Final, final

import torch
import torch.distributed as dist
from torch import Tensor

from scaling.core.waiting import waits

MOST_RANKS: Final = 8
"""Each rank reads what all others write, so that with many a ring of messages would be faster."""

SEMAPHORE_BYTES: Final = 64  # sem_t has 32 on all of Linux; a cache line each
_SPINS: Final = 200
"""Looks at a semaphore before its rank sleeps: about as long as waking up takes."""
_PATIENCE: Final = 0.5
"""Seconds of sleep after which a rank looks whether the other one is alive."""

_NUMBER: Final = struct.Struct("q")
_PREAMBLE: Final = struct.Struct(f"q{MOST_RANKS}q")
"""A number that only these ranks know, and their process IDs."""
PREAMBLE_BYTES: Final = 128


class _Deadline(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


@final
class SharedMemory:
    """One rank's view of the memory of a group, of which it is rank `rank` of `size`. Linux only."""

    def __init__(self, memory: mmap.mmap, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self.others = [other for other in range(size) if other != rank]
        self.memory = memory
        self.bytes = torch.frombuffer(memory, dtype=torch.uint8)
        self.pids: list[int] = []
        """The processes of the ranks."""
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        self._library = ctypes.CDLL(None, use_errno=True)
        self._lives: dict[int, int] = {}
        """A file descriptor that becomes readable when the process ends, by rank of the others."""

    def semaphore(self, offset: int) -> ctypes.c_void_p:
        """Return the semaphore at an offset into the memory."""
        return ctypes.c_void_p(self._address + offset)

    def prepare(self, offset: int, count: int) -> None:
        """Make `count` semaphores from an offset on, at zero. One rank, before the others look."""
        for number in range(count):
            self._library.sem_init(self.semaphore(offset + number * SEMAPHORE_BYTES), 1, 0)

    def watch(self) -> None:
        """Find out from now on when the process of another rank ends. All have written their process IDs."""
        self.pids = list(_PREAMBLE.unpack_from(self.memory)[1 : 1 + self.size])
        with contextlib.suppress(OSError, AttributeError):  # an old kernel or Python: then only the run's watch does
            self._lives = {other: os.pidfd_open(self.pids[other]) for other in self.others}

    def close(self) -> None:
        """Stop watching the others. The memory goes with the last tensor that is a view of it."""
        for descriptor in self._lives.values():
            os.close(descriptor)
        self._lives = {}

    def tell(self, semaphore: ctypes.c_void_p) -> None:
        """Let whoever waits for a semaphore go on: what was written before is there."""
        self._library.sem_post(semaphore)

    def is_told(self, semaphore: ctypes.c_void_p) -> bool:
        """Return whether somebody has told, and take that as heard."""
        return bool(self._library.sem_trywait(semaphore) == 0)

    def wait_for(self, other: int, semaphore: ctypes.c_void_p) -> None:
        """Wait until rank `other` tells. `DistNetworkError` where its process has ended."""
        look = self._library.sem_trywait
        for _ in range(_SPINS):
            if look(semaphore) == 0:
                return
        while True:
            whole, part = divmod(time.time() + _PATIENCE, 1)
            deadline = _Deadline(int(whole), int(part * 1e9))
            if self._library.sem_timedwait(semaphore, ctypes.byref(deadline)) == 0:
                return
            if ctypes.get_errno() == errno.ETIMEDOUT and self._has_ended(other):
                if look(semaphore) == 0:  # its last word
                    return
                raise dist.DistNetworkError(
                    f"Connection closed: the process of rank {other} of a group of {self.size} has ended"
                )

    def _has_ended(self, rank: int) -> bool:
        if rank not in self._lives:
            return False
        poll = select.poll()
        poll.register(self._lives[rank], select.POLLIN)
        return bool(poll.poll(0))


@waits
def open_memory(group: dist.ProcessGroup, size: int, *, semaphores: tuple[int, int]) -> SharedMemory | None:
    """Return `size` bytes that all ranks of a group have; None, on all of them, where one cannot have it.

    Rank 0 makes a file without a name, with semaphores (offset, count) in it, and says where others find it; they tell
    it from another machine's by a number at its beginning. Collective: the group, over whatever it goes through else.
    """
    rank = group.rank()
    token = secrets.randbits(62)
    own = create_file(token, size) if rank == 0 else None
    place = torch.tensor([os.getpid(), -1 if own is None else own, token], dtype=torch.int64)
    dist.broadcast(place, group_src=0, group=group)
    pid, descriptor, token = map(int, place.tolist())
    found = None
    if (memory := map_file(pid, descriptor, token, size)) is not None:
        found = SharedMemory(memory, rank, group.size())
        _NUMBER.pack_into(memory, _NUMBER.size * (1 + rank), os.getpid())
        if rank == 0:
            found.prepare(*semaphores)
    agreed = torch.tensor([found is not None], dtype=torch.int64)
    dist.all_reduce(agreed, op=dist.ReduceOp.MIN, group=group)
    if own is not None:
        os.close(own)
    if not int(agreed) or found is None:
        return None
    found.watch()
    return found


def create_file(token: int, size: int) -> int | None:
    """Return the descriptor of a new file in memory that begins with a number; None where there is no such thing."""
    if sys.platform != "linux":
        return None
    try:
        descriptor = os.memfd_create("scaling", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, size)
        os.pwrite(descriptor, _NUMBER.pack(token), 0)
    except OSError:
        return None
    return descriptor


def map_file(pid: int, descriptor: int, token: int, size: int) -> mmap.mmap | None:
    """Return the memory of a file that a process has open; None where this one cannot have it, or it is another one."""
    if descriptor < 0 or sys.platform != "linux":
        return None
    try:
        opened = os.open(f"/proc/{pid}/fd/{descriptor}", os.O_RDWR | os.O_CLOEXEC)
    except OSError:  # another machine's, or another container's
        return None
    try:
        if os.fstat(opened).st_size == size and os.pread(opened, _NUMBER.size, 0) == _NUMBER.pack(token):
            return mmap.mmap(opened, size)
    except (OSError, ValueError):  # it is no file, or there is no memory
        pass
    finally:
        os.close(opened)
    return None


@final
class Calls:
    """Calls that are made in the order in which they were asked for, at the latest when somebody waits for one."""

    def __init__(self) -> None:
        self._waiting: deque[Later] = deque()

    def later(self, act: Callable[[], None]) -> Later:
        """Ask for a call."""
        self._waiting.append(made := Later(act, self))
        return made

    def settle(self, until: Later | None = None) -> None:
        """Make the calls that wait: all, or those up to one."""
        while self._waiting and (until is None or not until.is_completed()):
            self._waiting.popleft().act()


@final
class Later:
    """A call that is made when somebody waits for it."""

    def __init__(self, act: Callable[[], None], calls: Calls) -> None:
        self._act: Callable[[], None] | None = act
        self._calls = calls

    def is_completed(self) -> bool:
        """Return whether it has been made."""
        return self._act is None

    def act(self) -> None:
        """Make it, once."""
        act, self._act = self._act, None
        if act is not None:
            act()

    @waits
    def wait(self) -> None:
        """Make it, after all that was asked for before it."""
        self._calls.settle(self)


def as_bytes(x: Tensor) -> Tensor:
    """Return a contiguous tensor's bytes, flat, as a view."""
    return x.detach().view(-1).view(torch.uint8)
