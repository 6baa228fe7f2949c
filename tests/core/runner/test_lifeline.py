"""The lifeline: what a runner says over it, what its end means, and its silence."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from typing import BinaryIO

import pytest

from scaling.core.errors import ConfigError
from scaling.core.runner import lifeline as module
from scaling.core.runner.lifeline import Lifeline
from tests.processes import wait_until


class Heard:
    def __init__(self) -> None:
        reader, writer = os.pipe()
        self.stream: BinaryIO = os.fdopen(reader, "rb")
        self.runner: BinaryIO = os.fdopen(writer, "wb", buffering=0)
        self.words: list[str] = []
        self.lifeline = Lifeline(self.stream, on_ask=self.words.append, on_end=lambda: self.words.append("end"))


@pytest.fixture
def heard() -> Iterator[Heard]:
    found = Heard()
    yield found
    found.runner.close()
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("scaling-lifeline")]
    for thread in threads:
        thread.join(5)
    found.stream.close()


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (b'{"ask": "SIGUSR1"}\n', ["SIGUSR1"]),
        (b'{"ask": "SIGTERM"}\n{"ask": "SIGUSR1"}\n', ["SIGTERM"]),
        (b'{"end": true}\n', ["end", "SIGTERM"]),
        (b"", ["SIGTERM"]),
        (b'nonsense\n[1]\n{"beat": true}\n{"ask": "else"}\n', ["SIGTERM"]),
    ],
)
def test_words_and_the_end_ask_once(heard: Heard, said: bytes, words: list[str]) -> None:
    heard.lifeline.start()
    heard.runner.write(said)
    heard.runner.close()
    wait_until(lambda: heard.words == words, f"heard {heard.words}", seconds=10)
    time.sleep(0.1)
    assert heard.words == words


def test_the_order_comes_first(heard: Heard) -> None:
    heard.runner.write(b'{"order": 1}\n{"ask": "SIGUSR1"}\n')
    assert heard.lifeline.first_line() == '{"order": 1}\n'
    heard.lifeline.start()
    wait_until(lambda: heard.words == ["SIGUSR1"], "the word behind the order was lost", seconds=10)


def test_an_end_before_the_order_is_an_error(heard: Heard) -> None:
    heard.runner.write(b'{"order"')
    heard.runner.close()
    with pytest.raises(ConfigError, match="ended before the order"):
        heard.lifeline.first_line()


def test_silence_after_beats_asks_and_silence_without_does_not(heard: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SILENCE_SECONDS", 0.3)
    monkeypatch.setattr(module, "_LOOK_SECONDS", 0.05)
    heard.lifeline.start()
    time.sleep(0.6)
    assert heard.words == [], "a runner that never beats is followed by the end of the stream alone"
    for _ in range(5):
        heard.runner.write(b'{"beat": true}\n')
        time.sleep(0.1)
    assert heard.words == []
    wait_until(lambda: heard.words == ["SIGTERM"], "the silence was not noticed", seconds=10)
