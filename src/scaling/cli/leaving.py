"""End soon on a signal, by an exception that cleans up or else without cleanup, and when the output has no reader."""

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
"""How long cleanup may take. While a library computes, such as the training of a tokenizer, no signal is handled."""


def _workers() -> Iterable[Any]:
    """Return this process's workers. Imports nothing: a signal may come at any time."""
    return getattr(sys.modules.get("multiprocessing"), "active_children", list)()


def _leave(number: int, frame: FrameType | None) -> None:
    for worker in _workers():  # otherwise those of a pool finish their current task
        worker.terminate()
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(128 + number)


@contextmanager
def leaving_soon() -> Iterator[None]:
    """Let SIGTERM and Ctrl-C end the block within about a second, together with the processes that it started.

    Signals for which the block installs its own handlers, as a training does, are left to it. For the main thread.
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
    """End the process silently as soon as the pipe on standard output has no reader, whatever it is doing.

    For work whose only result is its output. Without this, a closed pipe is noticed only at the next write.
    """
    stopped, stop = os.pipe()
    watch = threading.Thread(target=_end_unread, args=(stopped,), name="scaling-reader", daemon=True)
    watch.start()
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os._exit(OUTPUT_CLOSED)  # any other exit would try to flush the output
    finally:
        os.close(stop)
        watch.join()


def _end_unread(stopped: int) -> None:
    poller = select.poll()
    poller.register(stopped, 0)  # reports a hang-up once the other end is closed
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
    """End the process if a signal has not ended the block in time."""
    while numbers := os.read(reader, 64):
        for number in numbers:
            if signal.getsignal(number) is _leave:
                time.sleep(PATIENCE_SECONDS)
                if signal.getsignal(number) is _leave:  # the block is not over
                    for worker in _workers():
                        worker.kill()
                    os._exit(128 + number)
    os.close(reader)
