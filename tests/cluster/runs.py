"""Trainings on the hosts: their settings, their start as a user starts them, and what they left."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import subprocess
import sys
import termios
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.cluster.hosts import Hosts
from tests.processes import wait_until
from tests.transformer.small import command_environment, layout, metrics, settings_of, state, write_config

STEPS = 60
SAVE_INTERVAL = 10
EIGHT = layout(2, 2, 2)
FOUR = layout(2, 1, 2)
TWO = layout(2, 1, 1)
FOREVER = {"trainer.train_iterations": 1_000_000, "trainer.save_interval": 1_000_000}


@dataclass
class Run:
    """One start of a training, in a folder of its own."""

    folder: Path
    process: subprocess.Popen[Any]
    terminal: int | None = None
    """The side of whoever sits at the terminal, where there is one."""

    @property
    def log_dir(self) -> Path:
        return self.folder / "log"

    @property
    def save_dir(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def output(self) -> str:
        """Return what it has printed so far."""
        return (self.folder / "output.txt").read_text()

    @property
    def state(self) -> dict[str, Any]:
        """Return run_state.json."""
        return state(self.log_dir)

    @property
    def record(self) -> dict[str, Any]:
        """Return run.json."""
        found: dict[str, Any] = json.loads((self.log_dir / "run.json").read_text())
        return found

    def lines(self) -> list[dict[str, Any]]:
        """Return the lines of metrics.jsonl."""
        return metrics(self.log_dir)

    def steps(self) -> list[int]:
        """Return the steps in metrics.jsonl, as they stand there."""
        return [line["step"] for line in self.lines()] if (self.log_dir / "metrics.jsonl").exists() else []

    def wait(self, seconds: float = 240) -> int:
        """Wait for its end; return its status."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it did not end within {seconds} s:\n{self.output}") from None

    def wait_until(self, condition: Callable[[], bool], what: str, *, seconds: float, may_end: bool = False) -> None:
        """Wait for what is to come of it; unless `may_end`, its process must outlive it."""

        def has_come() -> bool:
            assert may_end or condition() or self.process.poll() is None, (
                f"{what} did not come; it ended with {self.process.returncode}:\n{self.output}"
            )
            return condition()

        try:
            wait_until(has_come, "", seconds=seconds)
        except AssertionError as error:
            raise error if str(error) else AssertionError(f"{what} did not come:\n{self.output}") from None

    def wait_for_step(self, step: int, seconds: float = 120, *, may_end: bool = False) -> None:
        """Wait until a step is in metrics.jsonl."""
        path = self.log_dir / "metrics.jsonl"

        def has_come() -> bool:
            return path.exists() and path.read_bytes().count(b"\n") >= step

        self.wait_until(has_come, f"step {step}", seconds=seconds, may_end=may_end)

    def finish(self, seconds: float = 240) -> list[dict[str, Any]]:
        """Wait for its end, which must be a good one; return the lines of metrics.jsonl."""
        status = self.wait(seconds)
        assert status == 0, f"it ended with {status}:\n{self.output}"
        return self.lines()


def losses(lines: Sequence[Mapping[str, Any]]) -> dict[int, float]:
    """Return the losses by step; each step must be there once."""
    found = {line["step"]: line["training/loss"] for line in lines}
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    return found


@dataclass
class Cluster:
    """Hosts, data to train on, and the undisturbed runs on one machine."""

    hosts: Hosts
    corpus: Path
    _undisturbed: dict[str, dict[int, float]] = field(default_factory=dict)

    def settings(self, folder: Path, *changes: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings of a training whose files go to `folder`."""
        ours = {
            "trainer.train_iterations": STEPS,
            "trainer.save_interval": SAVE_INTERVAL,
            "trainer.save_dir": str(folder / "checkpoints"),
        }
        return settings_of(self.corpus, folder / "log", ours, *changes)

    def runner(self, kind: str, processes: int, *, names: Sequence[str] | None = None, **more: Any) -> dict[str, Any]:
        """Return the settings of a runner on all hosts, with as many processes on each; None as a value removes one."""
        slots = processes // len(self.hosts.names)
        given = {
            "runner_type": kind,
            "hosts": [f"{name} slots={slots}" for name in names or self.hosts.names],
            "ssh_config": str(self.hosts.ssh_config),
            **more,
        }
        return {f"runner.{name}": value for name, value in given.items()}

    def train(
        self,
        folder: Path,
        *changes: Mapping[str, Any],
        terminal: bool = False,
        variables: Mapping[str, str] | None = None,
    ) -> Run:
        """Start `scaling train` on the first host."""
        config = write_config(folder / "config.yml", self.settings(folder, *changes))
        return self.start(
            folder, "h1", ["-m", "scaling.cli.main", "train", config], terminal=terminal, variables=variables
        )

    def start(
        self,
        folder: Path,
        host: str,
        arguments: Sequence[object],
        *,
        terminal: bool = False,
        variables: Mapping[str, str] | None = None,
    ) -> Run:
        """Start Python on a host, at a terminal of its own or without any."""
        folder.mkdir(parents=True, exist_ok=True)
        environment = command_environment(OMP_NUM_THREADS="1", TMPDIR=str(self.hosts.tmp), **(variables or {}))
        ours, theirs = pty.openpty() if terminal else (None, None)

        def take_terminal() -> None:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        with open(folder / "output.txt", "ab") as output:
            process = self.hosts.popen(
                host,
                [sys.executable, *arguments],
                env=environment,
                stdin=subprocess.DEVNULL if theirs is None else theirs,
                stdout=output,
                stderr=output if theirs is None else theirs,
                start_new_session=True,
                preexec_fn=None if theirs is None else take_terminal,
            )
        if theirs is not None:
            os.close(theirs)
        return Run(folder, process, ours)

    def undisturbed(self, folder: Path, *changes: Mapping[str, Any]) -> dict[int, float]:
        """Return the losses, by step, of a run on one machine that nothing happens to; it is run once."""
        key = json.dumps(changes)
        if key not in self._undisturbed:
            self._undisturbed[key] = losses(self.train(folder / "undisturbed", *changes).finish())
        return self._undisturbed[key]


def press_ctrl_c(run: Run) -> None:
    """Press the keys at its terminal."""
    assert run.terminal is not None
    os.write(run.terminal, b"\x03")


def close_terminal(run: Run) -> None:
    """Close its terminal, as the window is closed."""
    assert run.terminal is not None
    os.close(run.terminal)
    run.terminal = None


def kill(run: Run) -> None:
    """End the runner so that it cannot say anything."""
    run.process.send_signal(signal.SIGKILL)
    run.process.wait()


def terminate(run: Run) -> None:
    """Ask the runner to leave."""
    run.process.send_signal(signal.SIGTERM)
