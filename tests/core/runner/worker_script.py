"""What the runner's tests run in every process: `CONFIG BEHAVIOUR...`, one per rank, the last one for all others too.

Behaviours: ok, raise:ERROR, exit:STATUS, signal:NUMBER, listen:SECONDS (leave that long after being asked), stubborn
(never leave), fail_after:SECONDS (an unexpected error), tell (write what the process was given), slow_start:SECONDS.
"""

from __future__ import annotations

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


def main() -> int | None:
    folder, behaviours = Path(sys.argv[1]).parent, sys.argv[2:]
    rank = int(os.environ.get("RANK", "0"))
    behaviour, _, value = behaviours[min(rank, len(behaviours) - 1)].partition(":")
    if behaviour == "slow_start":
        (folder / f"pid_{rank}").write_text(str(os.getpid()))
        time.sleep(float(value))
    with Preemption() as preempted:
        (folder / f"pid_{rank}").write_text(str(os.getpid()))
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
                time.sleep(60)
            case "fail_after":
                time.sleep(float(value))
                raise RuntimeError("unexpected")
            case "tell":
                given = {name: os.environ.get(name) for name in GIVEN}
                (folder / f"given_{rank}.json").write_text(json.dumps(given | {"argv": sys.argv}))
    return None


run_process(main)
