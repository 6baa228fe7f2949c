"""The live line of a terminal: redrawn at the bottom, while everything else is written above it."""

from __future__ import annotations

import io
import os
import shutil
import sys
import threading
from typing import Any, Final, TextIO, final

ERASE: Final = "\x1b[J"
"""Erases from the cursor, which rests at the beginning of the live line, to the end of the screen."""


def is_terminal(stream: TextIO | None) -> bool:
    """Return whether a stream shows lines that can be redrawn. None is one that was closed before the process began."""
    return stream is not None and stream.isatty() and os.environ.get("TERM") != "dumb"


@final
class LiveLine:
    """Line that is redrawn on standard error until `close`; standard output and error are written above it.

    After each drawing the cursor is back at the beginning of the line. So a line that a narrower terminal has wrapped
    is erased as a whole, and a process that takes over after this one was killed erases the line without knowing of it.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a signal handler may log while a line is being drawn
        self._terminal = sys.stderr
        self._text = ""
        self._others = (sys.stdout, sys.stderr)
        self._above = tuple(_Above(self, stream) if is_terminal(stream) else stream for stream in self._others)
        sys.stdout, sys.stderr = self._above

    @property
    def width(self) -> int:
        """Return how many columns a line may have now. The last one stays free: some terminals wrap at it."""
        try:
            columns = os.get_terminal_size(self._terminal.fileno()).columns
        except (OSError, ValueError):
            columns = 0
        return (columns or shutil.get_terminal_size().columns) - 1

    def draw(self, text: str) -> None:
        """Show `text`, of at most `width` columns, in place of what was shown before."""
        with self._lock:
            self._text = text
            self._terminal.write(f"\r{ERASE}{text}\r")
            self._terminal.flush()

    def write_above(self, stream: TextIO, lines: str) -> None:
        """Write whole lines, and the live line below them."""
        with self._lock:
            self._terminal.write(f"\r{ERASE}")
            self._terminal.flush()
            stream.write(lines)
            stream.flush()
            self.draw(self._text[: self.width])

    def close(self) -> None:
        """Leave the line where it is, and restore standard output and error."""
        with self._lock:
            if (sys.stdout, sys.stderr) == self._above:
                sys.stdout, sys.stderr = self._others
            for stream in self._above:
                if isinstance(stream, _Above):
                    stream.write_rest()
            if self._text:
                self._terminal.write(f"\r{ERASE}{self._text}\n")
                self._terminal.flush()


class _Above(io.TextIOBase):
    """Replacement of an output that passes whole lines on, to be written above the live line."""

    def __init__(self, live: LiveLine, stream: TextIO) -> None:
        super().__init__()
        self._live = live
        self._stream = stream
        self._rest = ""

    def write(self, text: str) -> int:
        whole, newline, rest = text.rpartition("\n")
        if newline:
            whole, self._rest = self._rest + whole + newline, ""
            self._live.write_above(self._stream, whole)
        self._rest += rest
        return len(text)

    def write_rest(self) -> None:
        """Write an unfinished last line."""
        if self._rest:
            self.write("\n")

    def flush(self) -> None:
        self._stream.flush()

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._stream.fileno()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
