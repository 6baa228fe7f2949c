"""Memory shared by the processes of one machine, with semaphores by which they signal each other."""

from __future__ import annotations

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
from torch.utils._python_dispatch import _disable_current_modes, _get_current_dispatch_mode_stack

from scaling.core.waiting import waits

MOST_RANKS: Final = 8
"""Most ranks of a group. Each rank reads what all others write; with many ranks, a ring of messages is faster."""

SEMAPHORE_BYTES: Final = 64  # sem_t has 32 on all of Linux; a cache line each
_SPINS: Final = 200
"""Polls of a semaphore before the rank sleeps; they take about as long as waking up."""
_PATIENCE: Final = 0.5
"""Seconds of sleep after which a rank checks whether the other rank is alive."""

_NUMBER: Final = struct.Struct("q")
_PREAMBLE: Final = struct.Struct(f"q{MOST_RANKS}q")
"""A number that only these ranks know, and their process IDs."""
PREAMBLE_BYTES: Final = 128


_GONE: Final = -1
"""Written in place of its process ID by a rank that has closed the memory."""


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
        """Process IDs of the ranks."""
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        self._library = ctypes.CDLL(None, use_errno=True)
        self._lives: dict[int, int] = {}
        """For each other rank, a file descriptor that becomes readable when its process ends."""
        self._ended: set[int] = set()

    def semaphore(self, offset: int) -> ctypes.c_void_p:
        """Return the semaphore at an offset into the memory."""
        return ctypes.c_void_p(self._address + offset)

    def prepare(self, offset: int, count: int) -> None:
        """Initialise `count` semaphores at zero, from an offset on. One rank calls this, before the others use them."""
        for number in range(count):
            self._library.sem_init(self.semaphore(offset + number * SEMAPHORE_BYTES), 1, 0)

    def watch(self) -> None:
        """Detect from now on when the process of another rank ends. All ranks must have written their process IDs."""
        self.pids = list(_PREAMBLE.unpack_from(self.memory)[1 : 1 + self.size])
        for other in self.others:
            try:
                self._lives[other] = os.pidfd_open(self.pids[other])
            except ProcessLookupError:
                self._ended.add(other)
            except (OSError, AttributeError):  # old kernel or Python: the run's own monitoring will notice
                continue

    def close(self) -> None:
        """Make waits for this rank fail from now on. The memory is freed with the last tensor that is a view of it."""
        _NUMBER.pack_into(self.memory, _NUMBER.size * (1 + self.rank), _GONE)
        for descriptor in self._lives.values():
            os.close(descriptor)
        self._lives = {}

    def post(self, semaphore: ctypes.c_void_p) -> None:
        """Post a semaphore: the rank that waits for it continues and sees all that was written before."""
        self._library.sem_post(semaphore)

    def try_wait(self, semaphore: ctypes.c_void_p) -> bool:
        """Return whether a semaphore has been posted; if so, decrement it."""
        return bool(self._library.sem_trywait(semaphore) == 0)

    def wait_for(self, other: int, semaphore: ctypes.c_void_p) -> None:
        """Wait until rank `other` posts. `DistNetworkError` if its process has ended or it has closed the memory."""
        try_wait = self._library.sem_trywait
        for _ in range(_SPINS):
            if try_wait(semaphore) == 0:
                return
        while not self._slept(semaphore):
            if self._has_ended(other):
                if try_wait(semaphore) == 0:  # posted before the end
                    return
                raise dist.DistNetworkError(
                    f"Connection closed: the process of rank {other} of a group of {self.size} has ended"
                )

    def _slept(self, semaphore: ctypes.c_void_p) -> bool:
        """Wait for a semaphore for a limited time and return whether it has been posted."""
        clockwait = getattr(self._library, "sem_clockwait", None)  # glibc 2.30
        whole, part = divmod((time.monotonic() if clockwait else time.time()) + _PATIENCE, 1)
        deadline = ctypes.byref(_Deadline(int(whole), int(part * 1e9)))
        if clockwait is not None:
            result = clockwait(semaphore, time.CLOCK_MONOTONIC, deadline)
        else:
            result = self._library.sem_timedwait(semaphore, deadline)
        if result != 0 and (number := ctypes.get_errno()) not in (errno.ETIMEDOUT, errno.EINTR):
            raise OSError(number, os.strerror(number))
        return bool(result == 0)

    def _has_ended(self, rank: int) -> bool:
        if rank in self._ended or _NUMBER.unpack_from(self.memory, _NUMBER.size * (1 + rank))[0] == _GONE:
            return True
        if rank not in self._lives:
            return False
        poll = select.poll()
        poll.register(self._lives[rank], select.POLLIN)
        return bool(poll.poll(0))


@waits
def open_memory(group: dist.ProcessGroup, size: int, *, semaphores: tuple[int, int]) -> SharedMemory | None:
    """Return `size` bytes shared by all ranks of a group of 2 to 8; None, on all of them, where one cannot map it.

    Rank 0 creates an unnamed file with semaphores (offset, count) in it and broadcasts where to find it; a number at
    its beginning distinguishes it from a file of another machine. Ranks in different network namespaces count as
    different hosts, whatever else they share. Collective: the group, over its usual transport.
    """
    if not 1 < group.size() <= MOST_RANKS:
        return None
    rank = group.rank()
    token = secrets.randbits(62)
    own = create_file(token, size) if rank == 0 else None
    place = torch.tensor([os.getpid(), -1 if own is None else own, token, network()], dtype=torch.int64)
    dist.broadcast(place, group_src=0, group=group)
    pid, descriptor, token, others = map(int, place.tolist())
    found = None
    if others == network() and (memory := map_file(pid, descriptor, token, size)) is not None:
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


def network() -> int:
    """Return the number of this process's network namespace; 0 where the system has none."""
    try:
        return os.stat("/proc/self/ns/net").st_ino
    except OSError:
        return 0


def create_file(token: int, size: int) -> int | None:
    """Return the descriptor of a new file in memory that begins with `token`; None where it cannot be created."""
    if sys.platform != "linux":
        return None
    try:
        if os.readlink("/proc/self") != str(os.getpid()):  # another PID namespace: others would look in a wrong place
            return None
        descriptor = _memory_file()
        os.ftruncate(descriptor, size)
        os.pwrite(descriptor, _NUMBER.pack(token), 0)
    except (OSError, AttributeError):
        return None
    return descriptor


def _memory_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("scaling", os.MFD_CLOEXEC)
    library = ctypes.CDLL(None, use_errno=True)  # this Python was built for older systems
    descriptor: int = library.memfd_create(b"scaling", 1)
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), "memfd_create")
    return descriptor


def map_file(pid: int, descriptor: int, token: int, size: int) -> mmap.mmap | None:
    """Return the memory of a file that a process has open; None where it cannot be mapped or is a different file."""
    if descriptor < 0 or sys.platform != "linux":
        return None
    try:
        # If the numbers come from another machine, the descriptor may be a terminal or a pipe here.
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
        opened = os.open(f"/proc/{pid}/fd/{descriptor}", flags)
    except OSError:  # of another machine or another container
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
class CallQueue:
    """Calls that run in the order in which they were deferred, and not before somebody waits for one of them."""

    def __init__(self) -> None:
        self._waiting: deque[DeferredCall] = deque()

    def defer(self, call: Callable[[], None]) -> DeferredCall:
        """Append a call to the queue."""
        self._waiting.append(made := DeferredCall(call, self))
        return made

    def run_until(self, last: DeferredCall | None = None) -> None:
        """Run the deferred calls: all of them, or those up to and including `last`."""
        while self._waiting and (last is None or not last.is_completed()):
            self._waiting.popleft().run()


@final
class DeferredCall:
    """A call that runs when somebody waits for it or for a later one."""

    def __init__(self, call: Callable[[], None], queue: CallQueue) -> None:
        self._call: Callable[[], None] | None = call
        self._queue = queue
        self._error: BaseException | None = None
        self._modes = _get_current_dispatch_mode_stack()

    def is_completed(self) -> bool:
        """Return whether the call has run or has been started."""
        return self._call is None

    def run(self) -> None:
        """Run the call, once. Dispatch modes entered since it was deferred do not see it: it was not made in them."""
        call, self._call = self._call, None
        if call is None:
            return
        try:
            if self._modes == _get_current_dispatch_mode_stack():
                call()
            else:
                with _disable_current_modes():
                    call()
        except BaseException as error:
            self._error = error
            raise

    @waits
    def wait(self) -> None:
        """Run the call after all calls deferred before it. Raise its error, if it has one."""
        self._queue.run_until(self)
        if self._error is not None:
            raise self._error


def as_bytes(x: Tensor) -> Tensor:
    """Return a contiguous tensor's bytes, flat, as a view."""
    return x.detach().view(-1).view(torch.uint8)
