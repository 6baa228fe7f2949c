"""The console shows loss, speed and time left, rarer as a run gets longer."""

from __future__ import annotations

import io
import itertools
import logging
import sys

import pytest

from scaling.core.logging.console import ConsoleSink


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO)
    return caplog


def test_a_line_has_step_loss_speed_and_time_left(lines: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    sink = ConsoleSink(total_steps=100, may_draw=False, clock=clock)
    clock.now = 20.0
    sink.write(10, {"training/loss": 3.14159, "training/tokens_per_second": 12345.6})
    assert lines.messages == ["step 10/100  loss 3.1416  12,346 tokens/s  0:03:00 left"]


def test_samples_stand_in_where_there_are_no_tokens(lines: pytest.LogCaptureFixture) -> None:
    ConsoleSink(total_steps=1, may_draw=False).write(1, {"training/loss": 1.0, "training/samples_per_second": 1.5})
    assert lines.messages == ["step 1/1  loss 1.0000  1.5 samples/s"]


def test_time_left_counts_the_steps_of_this_start_only(lines: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    sink = ConsoleSink(total_steps=100, first_step=80, may_draw=False, clock=clock)
    clock.now = 10.0
    sink.write(90, {"training/loss": 1.0, "training/samples_per_second": 1.0})
    assert lines.messages == ["step 90/100  loss 1.0000  1 samples/s  0:00:10 left"]


def test_a_step_that_is_shown_late_tells_no_time_left(lines: pytest.LogCaptureFixture) -> None:
    """Only the last step of an interval, or none where the run is left before its end, is shown when it is taken."""
    clock = Clock()
    sink = ConsoleSink(total_steps=100, may_draw=False, clock=clock)
    clock.now = 500.0
    sink.write(1, {"training/loss": 1.0})
    assert lines.messages == ["step 1/100  loss 1.0000"]


def test_before_the_first_step_of_this_start_the_time_left_is_unknown(lines: pytest.LogCaptureFixture) -> None:
    ConsoleSink(total_steps=100, first_step=80, may_draw=False).write(80, {"training/samples_per_second": 1.0})
    assert lines.messages == ["step 80/100  1 samples/s"]


def test_lines_get_rarer_but_the_first_and_last_step_always_show(lines: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    sink = ConsoleSink(total_steps=100_000, may_draw=False, clock=clock)
    for step in range(1, 100_001):
        clock.now += 0.1
        sink.write(step, {"training/loss": 1.0})
    shown = [int(message.split("/")[0].removeprefix("step ")) for message in lines.messages]
    assert shown[0] == 1
    assert shown[-1] == 100_000
    assert 100 < len(shown) < 400
    assert min(after - before for before, after in itertools.pairwise(shown[:-1])) >= 10


def test_an_evaluation_always_shows(lines: pytest.LogCaptureFixture) -> None:
    sink = ConsoleSink(total_steps=100, may_draw=False, clock=Clock())
    for step in range(1, 5):
        sink.write(step, {"training/loss": 1.0, "evaluation/loss": 2.0, "evaluation/perplexity": 7.389})
    assert [message for message in lines.messages if "evaluation" in message] == [
        f"step {step}/100  evaluation: loss 2  perplexity 7.389" for step in range(1, 5)
    ]


def test_a_terminal_shows_one_live_line(monkeypatch: pytest.MonkeyPatch, lines: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    sink = ConsoleSink(total_steps=2)
    for step in (1, 2):
        sink.write(step, {"training/loss": 1.0 / step})
    sink.close()
    assert sys.stderr is stream
    assert "step 2/2  loss 0.5000" in stream.getvalue()
    assert lines.messages == []


def test_a_rank_that_may_not_draw_logs_on_a_terminal_too(
    monkeypatch: pytest.MonkeyPatch, lines: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    ConsoleSink(total_steps=2, may_draw=False).write(1, {"training/loss": 1.0})
    assert len(lines.messages) == 1


def test_metrics_without_loss_or_speed_show_nothing(lines: pytest.LogCaptureFixture) -> None:
    ConsoleSink(total_steps=2, may_draw=False).write(1, {"training/global_grad_norm": 1.0})
    assert lines.messages == []
