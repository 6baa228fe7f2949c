"""What is taken for a terminal."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import pty
import re
import struct
import termios
from typing import TextIO


class Terminal(io.StringIO):
    """Keeps what is written, and says that it is a terminal."""

    def isatty(self) -> bool:
        return True


class Screen:
    """A terminal of a few columns, of which as much is played as the live line uses."""

    def __init__(self, columns: int) -> None:
        self.master, slave = pty.openpty()
        self.stream: TextIO = os.fdopen(slave, "w")
        os.set_blocking(self.master, False)
        self.resize(columns)

    def resize(self, columns: int) -> None:
        """Give the terminal another width."""
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def lines(self) -> list[str]:
        """Return what is on the screen after what was written since the last call, however long its lines are."""
        return shown_of(self.read())

    def read(self) -> str:
        """Return what was written since the last call."""
        content = ""
        with contextlib.suppress(BlockingIOError):
            while True:
                content += os.read(self.master, 10**6).decode()
        return content

    def close(self) -> None:
        """Close both ends."""
        self.stream.close()
        os.close(self.master)


def shown_of(content: str) -> list[str]:
    """Return the lines that a terminal shows of an output, with as much of its language as a training uses."""
    shown, column = [""], 0
    content = re.sub(r"\x1b\[[?\d;]*[Khlm]", "", content.replace("\r\n", "\n"))
    for part in re.split(r"(\n|\r|\x1b\[J)", content):
        if part == "\n":
            shown.append("")
            column = 0
        elif part == "\r":
            column = 0
        elif part == "\x1b[J":
            shown[-1] = shown[-1][:column]
        else:
            shown[-1] = shown[-1][:column] + part + shown[-1][column + len(part) :]
            column += len(part)
    return shown
