"""docs/watching.md shows what a training shows: the same lines with the same fields in the same order."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from scaling.core.logging.events import EventKind
from scaling.core.logging.line import step_fields
from scaling.core.logging.summary import MAX_LINES
from tests.captures import (
    COMMAND,
    PAGE,
    STOPPED,
    WIDTHS,
    has_live_line,
    piped,
    prepare,
    shape,
    shown_in_page,
)
from tests.core.logging.terminals import Screen, shown_of
from tests.processes import descendants, wait_until
from tests.transformer.small import command_environment, layout

FIELDS = step_fields(
    40,
    60,
    {
        "training/loss": 1.0,
        "training/global_grad_norm": 1.0,
        "training/learning_rate_all": 1.0,
        "training/tokens_per_second": 1.0,
        "training/peak_memory_bytes": 1.0,
        "training/data_wait_fraction": 1.0,
    },
    seconds_left=1.0,
)
STEP_LINE = re.compile(r"step#/#loss")
"""How the line of a step begins in its shape."""


def message(line: str) -> str:
    """Return a plain line without date, level and rank."""
    return line.partition("[run] ")[2]


@pytest.mark.parametrize(("width", "left_out"), [(120, ()), (60, ("grad_norm", "lr", "memory_gib", "data_wait"))])
def test_the_live_line_of_a_terminal_has_the_most_important_fields_in_order(
    width: int, left_out: tuple[str, ...]
) -> None:
    lines = shown_in_page(width)
    assert width in WIDTHS
    assert max(map(len, lines)) <= width
    assert has_live_line(lines)
    assert shape(lines[-1:]) == shape(["  ".join(field.shown for field in FIELDS if field.name not in left_out)])
    kinds = [EventKind.EVALUATION.value, EventKind.CHECKPOINT.value]
    told = [line for line in shape(lines) if re.search("step#/#(evaluation|checkpoint)", line)]
    assert [kind in line for line, kind in zip(told, kinds * 2, strict=True)] == [True] * 4


def test_a_plain_line_has_all_fields_and_the_summary_at_most_eight_lines() -> None:
    lines = [message(line) for line in shown_in_page(None)]
    steps = [line.split() for line in lines if re.match("step [0-9/]+ loss", line)]
    names = [field.name for field in FIELDS]
    assert {tuple(words[::2]) for words in steps} == {tuple(names), tuple(names[:-1])}
    summary = lines[next(index for index, line in enumerate(lines) if line.startswith("finished")) :]
    assert len(summary) <= MAX_LINES


def test_lines_can_be_searched_for_and_cut(tmp_path: Path) -> None:
    log = tmp_path / "runs" / "first" / "rank_0.log"
    log.parent.mkdir(parents=True)
    log.write_text("".join(f"{line}\n" for line in shown_in_page(None)))
    (commands,) = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    done = subprocess.run(["sh", "-ec", commands], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60)
    found = done.stdout.splitlines()
    assert all(re.fullmatch(r"evaluation loss [0-9.]+", line) for line in found[:3])
    assert len(found) > 10
    assert all(float(line) > 0 for line in found[3:])


def test_every_event_is_explained() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", PAGE.read_text().partition("| `event` |")[2], re.MULTILINE)
    assert rows[: len(EventKind)] == [kind.value for kind in EventKind]


@pytest.mark.slow
@pytest.mark.parametrize("width", WIDTHS)
def test_a_terminal_shows_what_the_page_shows(width: int, tmp_path: Path) -> None:
    prepare(tmp_path)
    screen = Screen(width)
    process = subprocess.Popen(
        [sys.executable, *COMMAND],
        cwd=tmp_path,
        env={**command_environment(**STOPPED), "TERM": "xterm"},
        stdout=screen.stream,
        stderr=screen.stream,
        start_new_session=True,
    )
    try:
        content = ""

        def is_shown() -> bool:
            nonlocal content
            content += screen.read()
            return has_live_line(shown_of(content))

        wait_until(is_shown, "the training never came to where it stops", seconds=120)
    finally:
        for pid in (process.pid, *descendants(process.pid)):
            os.kill(pid, signal.SIGKILL)
        process.wait(60)
        screen.close()
    assert shape(shown_of(content)) == shape(shown_in_page(width))


@pytest.mark.slow
def test_a_file_shows_what_the_page_shows(tmp_path: Path) -> None:
    ours, shown = (shape([message(line) for line in lines]) for lines in (piped(tmp_path), shown_in_page(None)))
    assert [line for line in ours if not STEP_LINE.match(line)] == [line for line in shown if not STEP_LINE.match(line)]
    assert {line for line in ours if STEP_LINE.match(line)} == {line for line in shown if STEP_LINE.match(line)}
    assert any(line.startswith("step#/#checkpoint") for line in ours)


@pytest.mark.slow
def test_a_bad_end_is_told_as_the_page_shows_it(tmp_path: Path) -> None:
    prepare(tmp_path)
    done = subprocess.run(
        [sys.executable, *COMMAND, *(f"{name}={size}" for name, size in layout(2, 1, 1).items())],
        cwd=tmp_path,
        env=command_environment(SCALING_FAULT="step.after_backward@1:3=raise"),
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 1
    (shown,) = re.findall(r"^```text\n(scaling\.core\.faults.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    expected = shown.replace("node17", socket.gethostname()).splitlines()
    assert done.stderr.splitlines()[-len(expected) :] == expected
