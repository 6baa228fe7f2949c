"""The processes of one side of a comparison: they take steps when asked, and sleep while the other sides run.

A side has an interpreter of its own, folders to import from, and a function that builds its step, so that two commits
of this library can be compared, and this library with another. As a program this file is one of the processes.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

HERE = Path(__file__).resolve().parents[1]
"""The checkout that this file is of."""


@dataclass(frozen=True)
class Place:
    """Which of a side's processes this is, and where they meet: port of 127.0.0.1."""

    rank: int
    world_size: int
    port: int


@dataclass(frozen=True)
class Work:
    """What the processes of one side are to do."""

    builder: str
    """`module.function`, or a function of this file.

    It is called with the place and the arguments, and returns a step and the device it runs on. A step
    returns its loss as a number, and 0 in a process that does not know it.
    """
    arguments: Mapping[str, Any]
    world_size: int = 1
    folders: tuple[str, ...] = (str(HERE / "benchmarks"),)
    """Where it imports from first."""


def configured(checkout: Path, builder: str, **arguments: Any) -> Work:
    """Return the work of a function of `train_step` in a checkout of this library."""
    world_size = arguments.pop("world_size")
    given = {"checkout": str(checkout), "builder": builder, **arguments}
    return Work("step_of_checkout", given, world_size)


@dataclass(frozen=True)
class Turn:
    """What one process took for the steps of one turn."""

    seconds: list[float]
    """Of each step."""
    processor_seconds: float
    """Of all threads and all steps."""


@dataclass(frozen=True)
class Result:
    """What one process reports at the end."""

    peak_memory_bytes: int
    loss: float
    first_loss: float
    resident_memory_bytes: int | None = None
    """When all steps are done, without what the first step took for a while. None: not on a CPU."""
    versions: dict[str, str] = field(default_factory=dict)


class SideEnded(SystemExit):
    """A process of a side ended, or did not answer in time."""


class Side:
    """The processes of one side."""

    def __init__(
        self, name: str, work: Work, *, interpreter: str = sys.executable, patience: float | None = None
    ) -> None:
        """Start them, and return when each has taken a step.

        `patience` is how many seconds an answer may take. With it, what the processes say goes to a file, and its end
        into the error; without it, an answer may take any time, and what they say is shown.
        """
        self.name, self.patience = name, patience
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.said = tempfile.TemporaryFile("w+") if patience is not None else None  # noqa: SIM115 - as long as the side
        self.turns: list[list[Turn]] = []
        self.processes = []
        for rank in range(work.world_size):
            given = json.dumps({"work": asdict(work), "place": asdict(Place(rank, work.world_size, port))})
            process = subprocess.Popen(
                [interpreter, str(Path(__file__).resolve()), given],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.said,
                text=True,
                env=os.environ | {"OMP_NUM_THREADS": str(threads(work.world_size))},
            )
            self.processes.append(process)
        answers = self._answers()
        assert answers == ["ready"] * len(self.processes), answers

    def run(self, steps: int) -> float:
        """Run steps and return the seconds of one."""
        return sum(self.turn(steps)) / steps

    def turn(self, steps: int) -> list[float]:
        """Run steps and return the seconds of each, of the slowest process."""
        self._ask(steps)
        turns = [Turn(**answer) for answer in self._answers()]
        self.turns.append(turns)
        return [max(each) for each in zip(*(turn.seconds for turn in turns), strict=True)]

    def processor_seconds_per_step(self) -> float:
        """Return the processor time that a step has taken so far, of all processes together."""
        steps = sum(len(turns[0].seconds) for turns in self.turns)
        return sum(turn.processor_seconds for turns in self.turns for turn in turns) / steps

    def finish(self) -> list[Result]:
        self._ask(0)
        results = [Result(**answer) for answer in self._answers()]
        for process in self.processes:
            process.wait()
        return results

    def end(self) -> None:
        """End the processes without waiting for what they are at."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()

    def _ask(self, steps: int) -> None:
        for process in self.processes:
            assert process.stdin is not None
            try:
                process.stdin.write(f"{steps}\n")
                process.stdin.flush()
            except BrokenPipeError:
                self._fail("ended")

    def _answers(self) -> list[Any]:
        waiting = {process.stdout: rank for rank, process in enumerate(self.processes) if process.stdout is not None}
        lines = [""] * len(waiting)
        while waiting:
            # A process gives one line for each question, so that nothing waits in a buffer which select cannot see.
            ready, _, _ = select.select(list(waiting), [], [], self.patience)
            if not ready:
                self._fail(f"gave no answer for {self.patience:.0f} seconds")
            for stream in ready:
                rank = waiting.pop(stream)
                lines[rank] = stream.readline()
                if not lines[rank]:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        self.processes[rank].wait(10)  # it closes its answers before it says what it died of
                    self._fail("ended")
        return [json.loads(line) for line in lines]

    def _fail(self, how: str) -> None:
        self.end()
        text = "what it said is above"
        if self.said is not None:
            self.said.seek(0)
            text = reason(self.said.read())
        raise SideEnded(f"a process of the side {self.name} {how}: {text}")


def reason(said: str) -> str:
    """Return the line of a process's errors that says why it ended: the last that names an exception, or the last."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    named = [line for line in lines if line.split(":")[0].endswith(("Error", "Exception", "Exit", "NotFound"))]
    return ([*lines[-1:], *named] or ["it said nothing"])[-1][:500]


def threads(world_size: int) -> int:
    """Return how many threads a process may use: processes times threads are the cores, for every side."""
    return max(1, len(os.sched_getaffinity(0)) // world_size)


def main() -> None:
    given = json.loads(sys.argv[1])
    work, place = Work(**given["work"]), Place(**given["place"])
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # whatever a library prints goes beside the answers
        take_steps(work, place, answers)
        answers.flush()
        os._exit(0)  # no library's farewell to processes that may have gone already


def take_steps(work: Work, place: Place, answers: IO[str]) -> None:
    """Build the step, then run as many as each line of the standard input says, until that is 0."""
    import torch

    def answer(value: Any) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    torch.set_num_threads(threads(place.world_size))
    sys.path[:0] = work.folders
    module, _, function = work.builder.rpartition(".")
    owner = importlib.import_module(module) if module else sys.modules[__name__]
    step, device = getattr(owner, function)(place, **work.arguments)
    loss = first_loss = step()
    answer("ready")
    for line in sys.stdin:
        if int(line) == 0:
            break
        seconds = []
        processor = time.process_time()
        for _ in range(int(line)):
            begin = time.perf_counter()
            loss = step()
            seconds.append(time.perf_counter() - begin)
        answer(asdict(Turn(seconds, time.process_time() - processor)))
    if device.type == "cuda":
        result = Result(torch.cuda.max_memory_allocated(device), loss, first_loss)
    else:
        result = Result(memory("VmHWM"), loss, first_loss, memory("VmRSS"), versions())
    answer(asdict(result))


def memory(name: str) -> int:
    """Return a figure of this process's memory in bytes: VmHWM is the peak, which getrusage takes from the parent."""
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields[name].split()[0]) * 1024


def versions() -> dict[str, str]:
    """Return the version of each distribution that this process has imported something of."""
    from importlib import metadata

    owners = metadata.packages_distributions()
    names = {name for module in list(sys.modules) if "." not in module for name in owners.get(module, [])}
    return {name: metadata.version(name) for name in sorted(names, key=str.lower)}


def step_of_checkout(
    place: Place, *, checkout: str, builder: str, config: str | None, defaults: Mapping[str, Any], overrides: list[str]
) -> tuple[Callable[[], float], Any]:
    """Return what a checkout's own function makes of a configuration file, or else of the defaults."""
    root = Path(checkout).resolve()
    sys.path[:0] = [str(root / "src"), str(root / "benchmarks")]
    core, transformer = importlib.import_module("scaling.core"), importlib.import_module("scaling.transformer")
    assert Path(str(core.__file__)).is_relative_to(root), f"{core.__file__} is imported, which is not of {root}"
    read = (
        transformer.TransformerConfig.from_yaml(config, overrides, quiet=True)
        if config
        else transformer.TransformerConfig.from_dict(defaults, overrides, quiet=True)
    )
    launch = core.LaunchContext(
        rank=place.rank,
        world_size=place.world_size,
        local_rank=place.rank,
        master_addr="127.0.0.1",
        master_port=place.port,
    )
    step, device = getattr(importlib.import_module("train_step"), builder)(read, launch)
    return step, device


if __name__ == "__main__":
    main()
