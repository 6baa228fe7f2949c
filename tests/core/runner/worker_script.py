"""What the runner's tests run in every process: `CONFIG BEHAVIOUR...`, one per rank, the last one for all others too.

Behaviours: ok, raise:ERROR, exit:STATUS, signal:NUMBER, listen:SECONDS (leave that long after being asked), stubborn
(never leave), fail (an unexpected error), fail_without:RANK (once that one is gone), tell (write what the process was
given), slow_start (be long in coming to listen).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path

from scaling.core import errors
from scaling.core.runner.process import run_process
from scaling.core.trainer.preemption import Preemption

GIVEN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")


NEVER = 600.0
"""Seconds longer than any test."""


def introduce(folder: Path, rank: int) -> None:
    """Leave the number of this process, whole or not at all: it may be killed at any time."""
    note = folder / f"starting_{rank}"
    note.write_text(str(os.getpid()))
    note.replace(folder / f"pid_{rank}")


def wait_for_the_end_of(pid_file: Path) -> None:
    while not pid_file.exists():
        time.sleep(0.01)
    with contextlib.suppress(ProcessLookupError):
        while True:
            os.kill(int(pid_file.read_text()), 0)
            time.sleep(0.01)


def main() -> int | None:
    folder, behaviours = Path(sys.argv[1]).parent, sys.argv[2:]
    rank = int(os.environ.get("RANK", "0"))
    behaviour, _, value = behaviours[min(rank, len(behaviours) - 1)].partition(":")
    if behaviour == "slow_start":
        introduce(folder, rank)
        time.sleep(NEVER)
    with Preemption() as preempted:
        introduce(folder, rank)
        match behaviour:
            case "raise":
                raise getattr(errors, value)(f"this is a {value}")
            case "exit":
                return int(value)
            case "signal":
                os.kill(os.getpid(), int(value))
            case "listen":
                while not preempted():
                    time.sleep(0.01)
                (folder / f"asked_{rank}").write_text(preempted.reason or "")
                time.sleep(float(value))
                (folder / f"saved_{rank}").write_text("")
                return errors.ExitStatus.PREEMPTED
            case "stubborn":
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                time.sleep(NEVER)
            case "fail" | "fail_without":
                if value:
                    wait_for_the_end_of(folder / f"pid_{value}")
                raise RuntimeError("unexpected")
            case "tell":
                given = {name: os.environ.get(name) for name in GIVEN}
                (folder / f"given_{rank}.json").write_text(json.dumps(given | {"argv": sys.argv}))
    return None


run_process(main)
