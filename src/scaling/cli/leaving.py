"""Leave soon when asked: by an exception that cleans up, and without it where Python is not at work for a second."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import active_children
from types import FrameType

PATIENCE_SECONDS = 1.0
"""How long cleaning up may take. A library that computes hears of no signal: one that trains a tokenizer, say."""


def _leave(number: int, frame: FrameType | None) -> None:
    for worker in active_children():  # those of a pool finish what they are at otherwise
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


def _insist(reader: int) -> None:
    """End the process where a signal has not ended the block in time."""
    while numbers := os.read(reader, 64):
        for number in numbers:
            if signal.getsignal(number) is _leave:
                time.sleep(PATIENCE_SECONDS)
                if signal.getsignal(number) is _leave:  # the block is not over
                    for worker in active_children():
                        worker.kill()
                    os._exit(128 + number)
    os.close(reader)
