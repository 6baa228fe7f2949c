"""The processes of one side of a comparison: they take steps when asked, and sleep while the other sides run.

Each side imports this library, and the functions that build its step, from a checkout of its own, so that two commits
can be compared. As a program this file is one of the processes.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

HERE = Path(__file__).resolve().parents[1]
"""The checkout that this file is of."""


@dataclass(frozen=True)
class Work:
    """What one process is to do."""

    checkout: str
    """The folder whose `src` and `benchmarks` it imports from."""
    builder: str
    """The function of `train_step` that builds its step."""
    config: str | None
    """A configuration file. None: `defaults`."""
    defaults: Mapping[str, Any]
    overrides: list[str]
    world_size: int
    port: int
    rank: int = 0


@dataclass(frozen=True)
class Result:
    """What one process reports at the end."""

    peak_memory_bytes: int
    loss: float


class Side:
    """The processes of one side."""

    def __init__(self, name: str, **work: Any) -> None:
        self.name = name
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.processes = []
        for rank in range(work["world_size"]):
            given = json.dumps(asdict(Work(**work, port=port, rank=rank)))
            command = [sys.executable, __file__, given]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            self.processes.append(process)
        assert self._answers() == ["ready"] * len(self.processes)

    def run(self, steps: int) -> float:
        """Run steps and return the seconds of one, of the slowest process."""
        self._ask(steps)
        return max(self._answers()) / steps

    def finish(self) -> list[Result]:
        self._ask(0)
        results = [Result(**answer) for answer in self._answers()]
        for process in self.processes:
            process.wait()
        return results

    def _ask(self, steps: int) -> None:
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.write(f"{steps}\n")
            process.stdin.flush()

    def _answers(self) -> list[Any]:
        lines = [process.stdout.readline() for process in self.processes if process.stdout is not None]
        if not all(lines):
            raise SystemExit(f"a process of the side {self.name} ended; what it said is above")
        return [json.loads(line) for line in lines]


def main() -> None:
    work = Work(**json.loads(sys.argv[1]))
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # whatever a library prints goes beside the answers
        take_steps(work, answers)


def take_steps(work: Work, answers: IO[str]) -> None:
    """Build the step, then run as many as each line of the standard input says, until that is 0."""
    import torch

    def answer(value: Any) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // work.world_size))
    step, device = built(work)
    loss = step()
    answer("ready")
    for line in sys.stdin:
        if int(line) == 0:
            break
        begin = time.perf_counter()
        for _ in range(int(line)):
            loss = step()
        answer(time.perf_counter() - begin)
    memory = (
        torch.cuda.max_memory_allocated(device)
        if device.type == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    answer(asdict(Result(memory, loss)))


def built(work: Work) -> tuple[Callable[[], float], Any]:
    """Return what the checkout's own function makes of the configuration: a step, and the device it runs on."""
    checkout = Path(work.checkout).resolve()
    sys.path[:0] = [str(checkout / "src"), str(checkout / "benchmarks")]
    core, transformer = importlib.import_module("scaling.core"), importlib.import_module("scaling.transformer")
    assert Path(str(core.__file__)).is_relative_to(checkout), f"{core.__file__} is imported, which is not of {checkout}"
    config = (
        transformer.TransformerConfig.from_yaml(work.config, work.overrides, quiet=True)
        if work.config
        else transformer.TransformerConfig.from_dict(work.defaults, work.overrides, quiet=True)
    )
    launch = core.LaunchContext(
        rank=work.rank,
        world_size=work.world_size,
        local_rank=work.rank,
        master_addr="127.0.0.1",
        master_port=work.port,
    )
    step, device = getattr(importlib.import_module("train_step"), work.builder)(config, launch)
    return step, device


if __name__ == "__main__":
    main()
