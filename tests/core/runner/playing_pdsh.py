"""Plays pdsh: a JSON list of [host, command]; copies their lines with the host's name, and says who was lost."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from typing import IO

TURN = threading.Lock()


def copy(name: str, source: IO[str], target: IO[str]) -> None:
    for line in source:
        with TURN:
            target.write(f"{name}: {line}")
            target.flush()


def run(host: str, command: list[str]) -> None:
    name = host.rpartition("@")[2]
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    errors = threading.Thread(target=copy, args=(name, process.stderr, sys.stderr))
    errors.start()
    copy(name, process.stdout, sys.stdout)
    errors.join()
    if code := process.wait():
        with TURN:
            sys.stderr.write(f"pdsh@here: {name}: ssh exited with exit code {255 if code < 0 else code}\n")
            sys.stderr.flush()


threads = [threading.Thread(target=run, args=arguments) for arguments in json.loads(sys.argv[1])]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
