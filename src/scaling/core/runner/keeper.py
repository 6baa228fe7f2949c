"""Run a command that must not outlive its starter: it is killed at the end of this process's standard input.

pdsh reads no standard input, so it would not notice that the runner is gone. Not every system can signal a process when
its parent dies. This file is started as a script, by an interpreter that needs nothing of this library.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence


def keep(argv: Sequence[str]) -> int:
    """Run `argv`, without standard input, and return its status; 127 where it cannot be started."""
    with contextlib.suppress(OSError):  # this process already leads a session
        os.setsid()
    try:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
    except OSError as error:
        sys.stderr.write(f"{argv[0]} cannot be started: {error.strerror}\n")
        return 127
    threading.Thread(target=_end_with_input, daemon=True).start()
    code = process.wait()
    return code if code >= 0 else 128 - code


def _end_with_input() -> None:
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
    os.killpg(os.getpgrp(), signal.SIGKILL)  # the command, and this process


if __name__ == "__main__":
    sys.exit(keep(sys.argv[1:]))
