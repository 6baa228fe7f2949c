"""The live line is drawn over itself, fits the terminal of the moment, and everything else is written above it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest

from scaling.core.logging.live_line import LiveLine, is_terminal
from tests.core.logging.terminals import Screen


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Iterator[Screen]:
    monkeypatch.setenv("TERM", "xterm")
    screen = Screen(60)
    yield screen
    screen.close()


def live_line(screen: Screen, monkeypatch: pytest.MonkeyPatch) -> LiveLine:
    """Return a live line at the bottom of a terminal, to which both outputs go."""
    for name in ("stdout", "stderr"):  # in the test: pytest sets them anew after the fixtures
        monkeypatch.setattr(sys, name, screen.stream)
    return LiveLine()


def test_a_drawing_replaces_the_one_before(screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    live = live_line(screen, monkeypatch)
    live.draw("a long line")
    live.draw("short")
    live.close()
    assert screen.lines() == ["short", ""]


def test_what_is_written_stays_above(screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    live = live_line(screen, monkeypatch)
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
    live = live_line(screen, monkeypatch)
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
    live = live_line(screen, monkeypatch)
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
