"""Lifeline: what a node takes from its standard input, its end, and its silence."""

from __future__ import annotations

import io
import os
import queue

import pytest

from scaling.core.errors import ConfigError
from scaling.core.runner import lifeline
from scaling.core.runner.lifeline import Lifeline


def heard(text: str) -> list[str]:
    """Return what a node does about standard input that ends after `text`."""
    words: queue.Queue[str] = queue.Queue()
    line = Lifeline(io.BytesIO(text.encode()), on_ask=words.put, on_end=lambda: words.put("end"))
    line._listen()
    return [words.get_nowait() for _ in range(words.qsize())]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ["SIGTERM"]),
        ('{"ask": "SIGUSR1"}\n', ["SIGUSR1"]),
        ('{"ask": "SIGTERM"}\n{"ask": "SIGUSR1"}\n', ["SIGTERM"]),
        ('{"beat": true}\n{"end": true}\n', ["end", "SIGTERM"]),
        ('no JSON\n[1]\n"ask"\n{"ask": 9}\n', ["SIGTERM"]),
    ],
)
def test_words_and_the_end_are_heard_once(text: str, expected: list[str]) -> None:
    assert heard(text) == expected


def test_an_order_that_is_cut_off_is_refused() -> None:
    line = Lifeline(io.BytesIO(b'{"plan": '), on_ask=print, on_end=print)
    with pytest.raises(ConfigError, match="ended before the order"):
        line.first_line()


@pytest.mark.parametrize("beats", [0, 1])
def test_silence_counts_once_a_beat_was_heard(monkeypatch: pytest.MonkeyPatch, beats: int) -> None:
    monkeypatch.setattr(lifeline, "SILENCE_SECONDS", 0.2)
    monkeypatch.setattr(lifeline, "_LOOK_SECONDS", 0.05)
    reader, writer = os.pipe()
    words: queue.Queue[str] = queue.Queue()
    with os.fdopen(reader, "rb") as stream:
        Lifeline(stream, on_ask=words.put, on_end=lambda: words.put("end")).start()
        try:
            os.write(writer, b'{"beat": true}\n' * beats)
            if beats:
                assert words.get(timeout=10) == "SIGTERM"
            else:
                with pytest.raises(queue.Empty):
                    words.get(timeout=0.6)
        finally:
            os.close(writer)
            if not beats:
                assert words.get(timeout=10) == "SIGTERM"
