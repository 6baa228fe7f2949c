"""Lifeline: the standard input of a node. It carries the runner's messages; its end means that the runner is gone."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, Final, final

from scaling.core.errors import ConfigError

SILENCE_SECONDS: Final = 120.0
"""How long a node waits for the next beat, once it has received one: a computer that sleeps sends none."""
_LOOK_SECONDS: Final = 1.0


@final
class Lifeline:
    """Reader of the lines of a stream, in a thread. `on_ask` gets a signal's name, at most once; `on_end` gets nothing.

    Lines are JSON: {"ask": "SIGTERM"} or {"ask": "SIGUSR1"}: leave; {"end": true}: end at once; {"beat": true}: the
    runner is alive. The end of the stream, and silence after a beat, count as a request with SIGTERM.
    """

    def __init__(self, stream: BinaryIO, *, on_ask: Callable[[str], None], on_end: Callable[[], None]) -> None:
        self._stream = stream
        self._on_ask, self._on_end = on_ask, on_end
        self._silence: float | None = None
        self._is_asked = threading.Event()

    def first_line(self) -> str:
        """Return the first line, which is the order. Call it before `start`."""
        line = self._stream.readline()
        if not line.endswith(b"\n"):
            raise ConfigError("standard input ended before the order; a node is started by the runner")
        return line.decode()

    def start(self) -> None:
        """Begin to listen."""
        for target, name in ((self._listen, "scaling-lifeline"), (self._keep_time, "scaling-lifeline-clock")):
            threading.Thread(target=target, name=name, daemon=True).start()

    def _listen(self) -> None:
        try:
            while line := self._stream.readline():
                self._hear(_understood(line))
        except (OSError, ValueError):  # it was closed
            pass
        self._ask("SIGTERM")

    def _hear(self, word: Mapping[str, Any]) -> None:
        if "beat" in word:
            self._silence = 0.0
        if "ask" in word:
            self._ask("SIGUSR1" if word["ask"] == "SIGUSR1" else "SIGTERM")
        if "end" in word:
            self._on_end()

    def _ask(self, name: str) -> None:
        if not self._is_asked.is_set():
            self._is_asked.set()
            self._on_ask(name)

    def _keep_time(self) -> None:
        before = time.monotonic()
        while not self._is_asked.wait(_LOOK_SECONDS):
            now = time.monotonic()
            if self._silence is not None:
                self._silence += min(now - before, 2 * _LOOK_SECONDS)  # this process was stopped where it took longer
                if self._silence >= SILENCE_SECONDS:
                    self._ask("SIGTERM")
            before = now


def _understood(line: bytes) -> Mapping[str, Any]:
    try:
        word = json.loads(line)
    except ValueError:
        return {}
    return word if isinstance(word, dict) else {}
