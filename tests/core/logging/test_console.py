"""The console shows a line while training goes on, rarer in a file as a run gets longer."""

from __future__ import annotations

import itertools
import logging
import sys

import pytest

from scaling.core.logging.console import ConsoleSink
from tests.core.logging.terminals import Terminal

SPEED = {"training/tokens_per_second": 12345.6}


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO)
    return caplog


def test_a_line_has_step_loss_speed_and_time_left(lines: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    sink = ConsoleSink(total_steps=100, may_draw=False, clock=clock)
    clock.now = 20.0
    sink.write(10, {"training/loss": 3.14159, **SPEED})
    assert lines.messages == ["step 10/100 loss 3.1416 tokens_per_second 12346 time_left 0:03:00"]


def test_time_left_counts_the_steps_of_this_start_only(lines: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    sink = ConsoleSink(total_steps=100, first_step=80, may_draw=False, clock=clock)
    sink.write(80, {"training/samples_per_second": 1.0})  # before the first of them it is unknown
    clock.now = 10.0
    sink.write(90, {"training/samples_per_second": 1.0})
    assert lines.messages == [
        "step 80/100 samples_per_second 1",
        "step 90/100 samples_per_second 1 time_left 0:00:10",
    ]


def test_a_step_that_was_taken_some_time_ago_is_not_shown(lines: pytest.LogCaptureFixture) -> None:
    """All steps since the last log are written at once; the last one alone has a speed."""
    sink = ConsoleSink(total_steps=100, may_draw=False)
    for step in range(1, 10):
        sink.write(step, {"training/loss": 1.0})
    sink.write(10, {"training/loss": 1.0, **SPEED})
    assert [message.split("/")[0] for message in lines.messages] == ["step 10"]


def test_lines_get_rarer_but_the_first_and_last_step_always_show(lines: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    sink = ConsoleSink(total_steps=100_000, may_draw=False, clock=clock)
    for step in range(1, 100_001):
        clock.now += 0.1
        sink.write(step, SPEED)
    shown = [int(message.split("/")[0].removeprefix("step ")) for message in lines.messages]
    assert shown[0] == 1
    assert shown[-1] == 100_000
    assert 100 < len(shown) < 400
    assert min(after - before for before, after in itertools.pairwise(shown[:-1])) >= 10


def test_a_terminal_shows_one_live_line(monkeypatch: pytest.MonkeyPatch, lines: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "40")
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    sink = ConsoleSink(total_steps=2)
    for step in (1, 2):
        sink.write(step, {"training/loss": 1.0 / step, "training/peak_memory_bytes": 2.0**30, **SPEED})
    sink.close()
    assert sys.stderr is stream
    assert stream.getvalue().endswith("step 2/2  loss 0.5000  12,346 tokens/s\n")
    assert lines.messages == []


def test_a_rank_that_may_not_draw_logs_on_a_terminal_too(
    monkeypatch: pytest.MonkeyPatch, lines: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    ConsoleSink(total_steps=2, may_draw=False).write(1, SPEED)
    assert len(lines.messages) == 1
