"""What a model says does nothing to a terminal, and is left as it is elsewhere."""

from __future__ import annotations

import json
import sys

import pytest

from scaling.cli.completions import write, write_json
from scaling.transformer.inference.generation.completion import Completion

COMMANDS = "\x1b[2J\x9bk\r"


@pytest.mark.parametrize("terminal", [True, False])
def test_commands_to_a_terminal_are_escaped_there(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *, terminal: bool
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    write(f"é\t{COMMANDS}\n")
    assert capsys.readouterr().out == ("é\t\\x1b[2J\\x9bk\\x0d\n" if terminal else f"é\t{COMMANDS}\n")
    write_json([COMMANDS], [[Completion([1, 2], f"é{COMMANDS}", "stop", [-0.5, -0.25], [[(1, -0.5)], []])]])
    (line,) = capsys.readouterr().out.splitlines()
    assert line.isascii() == terminal
    assert ("\x9b" in line) != terminal
    assert json.loads(line) == {
        "row": 0,
        "prompt": COMMANDS,
        "text": f"é{COMMANDS}",
        "tokens": [1, 2],
        "finish_reason": "stop",
        "log_probabilities": [-0.5, -0.25],
        "best": [[[1, -0.5]], []],
    }


def test_rows_count_samples_too(capsys: pytest.CaptureFixture[str]) -> None:
    samples = [Completion([number], str(number)) for number in range(4)]
    write_json(["a", [5]], [samples[:2], samples[2:]])
    lines = map(json.loads, capsys.readouterr().out.splitlines())
    found = [(line["row"], line["prompt"], line["sample"], line["text"]) for line in lines]
    assert found == [(0, "a", 0, "0"), (1, "a", 1, "1"), (2, [5], 0, "2"), (3, [5], 1, "3")]
