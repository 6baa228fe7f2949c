"""Output: this process's own standard output and standard error, written in whole lines from several threads."""

from __future__ import annotations

import sys
import threading
from typing import final


@final
class Output:
    """Writer of lines, one after another, from any thread."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._is_deaf = False
        self.is_closed = False
        """Whether nobody reads standard output any more."""

    def show(self, line: str, *, is_error: bool) -> None:
        """Write a line; do nothing once the terminal is gone, so that the processes can still save."""
        stream = sys.stderr if is_error else sys.stdout
        with self._turn:
            if self._is_deaf:
                return
            try:
                stream.write(f"{line}\n")
                stream.flush()
            except BrokenPipeError:
                self.is_closed = self._is_deaf = True
            except UnicodeEncodeError:
                stream.write(f"{line.encode('ascii', 'backslashreplace').decode()}\n")
            except (OSError, ValueError):
                self._is_deaf = True
