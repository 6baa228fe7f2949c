"""NodeOutput: the output of a machine's processes, on its way to a reader that may be slow or gone."""

from __future__ import annotations

import contextlib
import os
import selectors
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Final, final

LAST_LINES: Final = 20
_BUFFER_BYTES: Final = 1 << 20
_KEPT_BYTES: Final = 500
"""Bytes that are kept of a line: the last lines of all ranks travel in one line."""
_READ_BYTES: Final = 1 << 16
_STDOUT, _STDERR = 1, 2


@final
class NodeOutput:
    """Relay of lines to this process's own standard output and error that keeps the last lines of every rank.

    The processes write into named pipes, so no file grows on a disk. They never wait for the reader: a connection that
    is stuck or gone must not stop a training, so lines are dropped once a megabyte is waiting to be read.
    """

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._lines: dict[int, deque[str]] = {}
        self._streams: list[_Stream] = []
        self._queue = _Queue()
        self._is_over = threading.Event()
        self._attached = threading.Lock()
        self._reader = threading.Thread(target=self._read, name="scaling-output-reader", daemon=True)
        self._writer = threading.Thread(target=self._queue.write_all, name="scaling-output-writer", daemon=True)
        self._reader.start()
        self._writer.start()

    def attach(self, path: Path | str, *, rank: int, to: int) -> None:
        """Make a named pipe at `path`, and pass on what `rank` will write into it; `to` is 1 or 2."""
        os.mkfifo(path, 0o600)
        reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        holder = os.open(path, os.O_WRONLY)  # keeps the pipe open until all that was written is read
        kept = self._lines.setdefault(rank, deque(maxlen=LAST_LINES))
        stream = _Stream(reader, holder, to, kept)
        with self._attached:
            self._streams.append(stream)
            self._selector.register(reader, selectors.EVENT_READ, stream)

    def say(self, line: str) -> None:
        """Write a line to standard output, after everything that was passed on before."""
        self._queue.put(_STDOUT, f"{line}\n".encode(), is_needed=True)

    def last_lines(self, rank: int) -> tuple[str, ...]:
        """Return the last lines that a rank has written, to either stream."""
        return tuple(self._lines.get(rank, ()))

    def drain(self, seconds: float = 2.0) -> None:
        """Read what the processes have written so far; for use after they have ended."""
        self._is_over.set()
        self._reader.join(seconds)

    def close(self, seconds: float = 2.0) -> None:
        """Write out what is left, unless nobody reads it within `seconds`."""
        self.drain(seconds)
        self._queue.finish()
        self._writer.join(seconds)

    def _read(self) -> None:
        while True:
            over = self._is_over.is_set()
            with self._attached:
                ready = [key.data for key, _ in self._selector.select(0)]
            took = [self._take(stream) for stream in ready]
            if not any(took):
                if over:
                    break
                self._is_over.wait(0.02)
        for stream in self._streams:
            if line := stream.rest():
                self._queue.put(stream.to, line)
            stream.close()

    def _take(self, stream: _Stream) -> bool:
        try:
            data = os.read(stream.reader, _READ_BYTES)
        except BlockingIOError:
            return False
        for line in stream.lines(data):
            self._queue.put(stream.to, line)
        return bool(data)


@final
class _Stream:
    """One stream of one process, cut into lines."""

    def __init__(self, reader: int, holder: int, to: int, kept: deque[str]) -> None:
        self.reader, self._holder, self.to = reader, holder, to
        self._kept = kept
        self._partial = b""

    def lines(self, data: bytes) -> Iterator[bytes]:
        *whole, self._partial = (self._partial + data).split(b"\n")
        for line in whole:
            self._kept.append(line[-_KEPT_BYTES:].decode(errors="replace"))
            yield line + b"\n"
        if len(self._partial) > _BUFFER_BYTES:  # it is not text
            yield self.rest()

    def rest(self) -> bytes:
        line, self._partial = self._partial, b""
        if line:
            self._kept.append(line[-_KEPT_BYTES:].decode(errors="replace"))
        return line and line + b"\n"

    def close(self) -> None:
        os.close(self.reader)
        os.close(self._holder)


@final
class _Queue:
    """Lines that are to be written, at most a megabyte of them."""

    def __init__(self) -> None:
        self._ready = threading.Condition()
        self._waiting: deque[tuple[int, bytes]] = deque()
        self._bytes = 0
        self._dropped = 0
        self._is_finished = False

    def put(self, to: int, line: bytes, *, is_needed: bool = False) -> None:
        with self._ready:
            if self._bytes + len(line) > _BUFFER_BYTES and not is_needed:
                self._dropped += 1
                return
            self._waiting.append((to, line))
            self._bytes += len(line)
            self._ready.notify()

    def finish(self) -> None:
        with self._ready:
            self._is_finished = True
            self._ready.notify()

    def write_all(self) -> None:
        while True:
            with self._ready:
                while not self._waiting and not self._is_finished:
                    self._ready.wait()
                if not self._waiting:
                    return
                to, line = self._waiting.popleft()
                self._bytes -= len(line)
                dropped, self._dropped = (self._dropped, 0) if not self._waiting else (0, self._dropped)
            _write(to, line)
            if dropped:
                _write(_STDERR, f"({dropped} lines were left out here: nobody took them in time)\n".encode())


def _write(to: int, data: bytes) -> None:
    """Write all of `data`; drop it where nobody reads any more."""
    with contextlib.suppress(OSError):
        while data:
            try:
                data = data[os.write(to, data) :]
            except BlockingIOError:
                time.sleep(0.02)
