"""Look at the command lines of all processes, again and again, and into all files of a folder."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from typing_extensions import Self

INTERVAL_SECONDS = 0.1


class Watch:
    """Look for words in the command lines of all processes of this machine, and so of all hosts, while it lasts."""

    def __init__(self, *words: str) -> None:
        self.words = [word.encode() for word in words]
        self.seen: set[str] = set()
        """Command lines that had one of them."""
        self.samples = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(INTERVAL_SECONDS):
            self.samples += 1
            for line in _command_lines():
                if any(word in line for word in self.words):
                    self.seen.add(line.replace(b"\0", b" ").decode(errors="replace"))


def files_with(word: str, folders: Iterable[Path]) -> list[str]:
    """Return the files below these folders that have a word in their content or their name."""
    found = []
    for path in (path for folder in folders for path in folder.rglob("*")):
        if word in path.name or (path.is_file() and word.encode() in path.read_bytes()):
            found.append(str(path))
    return sorted(found)


def _command_lines() -> Iterable[bytes]:
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            yield (folder / "cmdline").read_bytes()
        except OSError:
            continue  # it has just ended
