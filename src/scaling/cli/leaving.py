"""Leave soon when asked, by an exception that cleans up or else without it, and when nobody reads any more."""

from __future__ import annotations

import os
import select
import signal
import stat
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from scaling.core.errors import OUTPUT_CLOSED

STANDARD_OUTPUT = 1

PATIENCE_SECONDS = 1.0
"""How long cleaning up may take. A library that computes hears of no signal: one that trains a tokenizer, say."""


def _workers() -> Iterable[Any]:
    """Return the processes that this one has started as workers. Imports nothing: a signal may come at any time."""
    return getattr(sys.modules.get("multiprocessing"), "active_children", list)()


def _leave(number: int, frame: FrameType | None) -> None:
    for worker in _workers():  # those of a pool finish what they are at otherwise
        worker.terminate()
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(128 + number)


@contextmanager
def leaving_soon() -> Iterator[None]:
    """Let SIGTERM and Ctrl-C end the block within about a second, with the processes that it started.

    Signals that the block handles in its own way, as a training does, are left to it. For the main thread.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    former = {number: signal.signal(number, _leave) for number in (signal.SIGTERM, signal.SIGINT)}
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_insist, args=(reader,), name="scaling-leaving", daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in former.items():
            signal.signal(number, handler)
        os.close(writer)


@contextmanager
def ending_with_reader() -> Iterator[None]:
    """End the process as soon as the pipe that it writes to has no reader, without a word and whatever it is at.

    For work that does nothing but write to standard output. A pipe that is written to now and then would not tell.
    """
    stopped, stop = os.pipe()
    watch = threading.Thread(target=_end_unread, args=(stopped,), name="scaling-reader", daemon=True)
    watch.start()
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os._exit(OUTPUT_CLOSED)  # any other way would try to write what is left
    finally:
        os.close(stop)
        watch.join()


def _end_unread(stopped: int) -> None:
    poller = select.poll()
    poller.register(stopped, 0)  # hung up once the other end is closed
    kind = os.fstat(STANDARD_OUTPUT).st_mode if _is_open(STANDARD_OUTPUT) else 0
    if stat.S_ISFIFO(kind) or stat.S_ISSOCK(kind):
        poller.register(STANDARD_OUTPUT, 0)
    if any(place == STANDARD_OUTPUT for place, _ in poller.poll()):
        os._exit(OUTPUT_CLOSED)
    os.close(stopped)


def _is_open(place: int) -> bool:
    try:
        os.fstat(place)
    except OSError:
        return False
    return True


def _insist(reader: int) -> None:
    """End the process where a signal has not ended the block in time."""
    while numbers := os.read(reader, 64):
        for number in numbers:
            if signal.getsignal(number) is _leave:
                time.sleep(PATIENCE_SECONDS)
                if signal.getsignal(number) is _leave:  # the block is not over
                    for worker in _workers():
                        worker.kill()
                    os._exit(128 + number)
    os.close(reader)
