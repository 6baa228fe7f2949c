"""The summary: at most eight lines about what this start has done."""

from __future__ import annotations

from pathlib import Path

from scaling.core.logging.summary import MAX_LINES, Summary

COMMANDS = ["scaling report runs/a", "scaling generate saves", "another"]


def summary_of(first_step: int, last_step: int, *, interval: int = 2) -> Summary:
    now = [100.0]
    summary = Summary(clock=lambda: now[0])
    now[0] = 200.0
    summary.begin(first_step)
    for step in range(first_step + 1, last_step + 1):
        metrics = {"training/loss": 10.0 - step if step < 8 else 9.0, "training/consumed_tokens": 100.0 * step}
        if step % interval == 0:
            speed = {"training/step_duration": 0.5, "training/tokens_per_second": 200.0}
            metrics |= {**speed, "training/data_wait_fraction": 0.25 if step > 4 else 0.75}
        summary.write(step, metrics)
    summary.write(4, {"evaluation/loss": 2.0})
    summary.write(8, {"evaluation/loss": float("nan")})
    now[0] += 65.0
    return summary


def test_everything_is_said_in_eight_lines() -> None:
    lines = summary_of(0, 8).lines(
        outcome="finished", checkpoint=Path("saves/global_step8"), log_dir=Path("runs/a"), next_commands=COMMANDS
    )
    assert lines == [
        "finished    8 steps, 800 tokens, 0:01:05",
        "speed       200 tokens/s, 0.5 s a step, 50 % of it waiting for data",
        "loss        9.0000 after step 8, at its best 3.0000 after step 7",
        "evaluation  nan after step 8, at its best 2.0000 after step 4",
        "checkpoint  saves/global_step8",
        "files       runs/a",
        "next        scaling report runs/a",
        "            scaling generate saves",
    ]
    assert len(lines) == MAX_LINES


def test_what_there_is_not_is_not_said() -> None:
    summary = Summary(clock=lambda: 0.0)
    summary.write(1, {"training/loss": 1.0})
    assert summary.lines(outcome="finished", checkpoint=None, log_dir=None, next_commands=()) == [
        "finished  1 steps, 0:00:00",
        "loss      1.0000 after step 1",
    ]


def test_a_resumed_run_says_what_this_start_has_done() -> None:
    summary = summary_of(4, 8)
    assert summary.steps == 4
    lines = summary.lines(outcome="pre-empted", checkpoint=None, log_dir=None, next_commands=["the same command"])
    assert lines[0] == "pre-empted  8 steps, 800 tokens, 4 of the steps in this start, in 0:01:05"
    assert lines[1] == "speed       200 tokens/s, 0.5 s a step, 25 % of it waiting for data"
    assert lines[-1] == "next        the same command"
