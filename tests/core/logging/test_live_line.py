"""The live line is drawn over itself, fits the terminal of the moment, and everything else is written above it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import struct
import sys
import termios
from collections.abc import Iterator
from typing import TextIO

import pytest

from scaling.core.logging.live_line import LiveLine, is_terminal


class Screen:
    """A terminal of a few columns, of which as much is played as the live line uses."""

    def __init__(self, columns: int) -> None:
        self._master, slave = pty.openpty()
        self.stream: TextIO = os.fdopen(slave, "w")
        self.resize(columns)

    def live_line(self, monkeypatch: pytest.MonkeyPatch) -> LiveLine:
        """Return a live line at the bottom of this terminal, to which both outputs go."""
        for name in ("stdout", "stderr"):  # in the test: pytest sets them anew after the fixtures
            monkeypatch.setattr(sys, name, self.stream)
        return LiveLine()

    def resize(self, columns: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def lines(self) -> list[str]:
        """Return what is on the screen after what was written since the last call."""
        os.set_blocking(self._master, False)
        content = ""
        with contextlib.suppress(BlockingIOError):
            while True:
                content += os.read(self._master, 10**6).decode()
        shown, column = [""], 0
        for part in content.replace("\r\n", "\n").replace("\x1b[J", "\x00"):
            if part == "\n":
                shown.append("")
                column = 0
            elif part == "\r":
                column = 0
            elif part == "\x00":
                shown[-1] = shown[-1][:column]
            else:
                shown[-1] = shown[-1][:column] + part + shown[-1][column + 1 :]
                column += 1
        return shown

    def close(self) -> None:
        self.stream.close()
        os.close(self._master)


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Iterator[Screen]:
    monkeypatch.setenv("TERM", "xterm")
    screen = Screen(60)
    yield screen
    screen.close()


def test_a_drawing_replaces_the_one_before(screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    live = screen.live_line(monkeypatch)
    live.draw("a long line")
    live.draw("short")
    live.close()
    assert screen.lines() == ["short", ""]


def test_what_is_written_stays_above(screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    live = screen.live_line(monkeypatch)
    live.draw("step 1")
    sys.stderr.write("an event\n")
    sys.stdout.write("half a ")
    live.draw("step 2")
    sys.stdout.write("line\nand the rest")
    live.close()
    assert screen.lines() == ["an event", "half a line", "and the rest", "step 2", ""]
    assert sys.stderr is screen.stream
    assert sys.stdout is screen.stream


def test_the_width_is_that_of_the_moment(screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    live = screen.live_line(monkeypatch)
    assert live.width == 59
    screen.resize(120)
    assert live.width == 119
    live.draw("x" * 119)
    screen.resize(40)
    sys.stderr.write("an event\n")  # draws the line again, as much as there is room for
    live.close()
    assert screen.lines() == ["an event", "x" * 39, ""]


def test_a_process_that_is_killed_leaves_a_line_that_the_next_one_erases(
    screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = screen.live_line(monkeypatch)
    live.draw("step 1 of many")
    screen.stream.write("\x1b[Jerror\n")
    screen.stream.flush()
    assert screen.lines() == ["error", ""]
    sys.stdout, sys.stderr = live._others


def test_a_file_and_a_dumb_terminal_show_no_live_line(screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_terminal(screen.stream)
    monkeypatch.setenv("TERM", "dumb")
    assert not is_terminal(screen.stream)
    with open(os.devnull, "w") as file:
        assert not is_terminal(file)
