"""Progress as people see it."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from scaling.transformer.data import progress as module
from scaling.transformer.data.progress import ConsoleProgress


def report(*, terminal: bool) -> str:
    output = io.StringIO()
    with ConsoleProgress(Console(file=output, force_terminal=terminal, width=100)) as progress:
        for done in range(0, 1001):
            progress("tokenizing [fast]", done, 1000)
        progress("nothing", 0, 0)
    return output.getvalue()


def test_without_a_terminal_there_are_a_few_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LINE_INTERVAL", 1000.0)
    assert report(terminal=False).splitlines() == [
        "tokenizing [fast]: 0 %",
        "tokenizing [fast]: 100 %",
        "nothing: 100 %",
    ]


def test_on_a_terminal_there_is_a_bar() -> None:
    output = report(terminal=True)
    assert "100%" in output
    assert "\x1b[" in output
