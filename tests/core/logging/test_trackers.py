"""Trackers of experiments: played ones that remember their calls, and in the slow tests the packages themselves."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from scaling.core.errors import ConfigError
from scaling.core.logging.config import LoggerConfig
from scaling.core.logging.metrics import MetricWriter
from scaling.core.logging.sinks import open_sinks
from scaling.core.logging.trackers import TrackerSink

ORIGIN = {"pipe": 0, "data": 0, "model": 0}


def open_and_write(config: LoggerConfig, resumed_step: int) -> None:
    """Write the step after `resumed_step` to the sinks of rank 0."""
    sinks = open_sinks(
        config,
        rank=0,
        positions=ORIGIN,
        resumed_step=resumed_step,
        total_steps=10,
        run_config={"trainer": {"seed": 1}},
    )
    for sink in sinks:
        sink.write(resumed_step + 1, {"training/loss": 2.0})
        sink.close()


class Wandb(ModuleType):
    """Stands in for the package: remembers what it was told."""

    class Run:
        def __init__(self, identity: str) -> None:
            self.id = identity
            self.logged: list[dict[str, float]] = []
            self.axes: list[tuple[str, str | None]] = []
            self.finished = False

        def define_metric(self, name: str, step_metric: str | None = None) -> None:
            self.axes.append((name, step_metric))

        def log(self, row: dict[str, float]) -> None:
            self.logged.append(row)

        def finish(self) -> None:
            self.finished = True

    def __init__(self, *, error: bool = False) -> None:
        super().__init__("wandb")
        self.error = error
        self.calls: list[dict[str, Any]] = []
        self.runs: list[Wandb.Run] = []
        self.errors = SimpleNamespace(Error=RuntimeError)
        self.Settings = SimpleNamespace

    def init(self, **arguments: Any) -> Run:
        if self.error:
            raise RuntimeError("no API key")
        self.calls.append(arguments)
        self.runs.append(self.Run(arguments["id"] or f"new{len(self.runs)}"))
        return self.runs[-1]


def test_a_resumed_run_is_the_same_run_at_weights_and_biases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    config = LoggerConfig.from_dict({"log_dir": str(tmp_path), "use_wandb": True, "metrics_ranks": []})
    for resumed_step in (0, 5, 0, 1):
        open_and_write(config, resumed_step)
    assert [run.id for run in wandb.runs] == ["new0", "new0", "new2", "new2"]
    assert wandb.runs[0].logged == [{"step": 1, "training/loss": 2.0}]
    assert ("*", "step") in wandb.runs[0].axes
    assert all(run.finished for run in wandb.runs)
    assert wandb.calls[0]["config"] == {"trainer": {"seed": 1}}


@pytest.mark.parametrize("counts_up", [True, False])
def test_a_tracker_that_fails_costs_metrics_and_not_the_run(counts_up: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Neither package promises what it raises: sqlite3.Error, requests' errors and its own ones do not share a base."""

    class Broken:
        def log(self, metrics: dict[str, Any], step: int | None = None) -> None:
            raise sqlite3.OperationalError("database is locked")

        def finish(self) -> None:
            raise RuntimeError("the service has gone")

    with MetricWriter([TrackerSink(Broken(), counts_up=counts_up)]) as metrics:
        metrics.add(1, {"training/loss": 2.0})
        assert metrics.flush() == {1: {"training/loss": 2.0}}
    assert caplog.messages == [
        "metrics are being lost: TrackerSink cannot write (OperationalError: database is locked)",
        "TrackerSink may have lost its last metrics (RuntimeError: the service has gone)",
        "TrackerSink did not write the metrics of 1 steps",
    ]


def test_a_refusal_of_weights_and_biases_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", Wandb(error=True))
    config = LoggerConfig.from_dict({"log_dir": str(tmp_path), "use_wandb": True})
    with pytest.raises(ConfigError, match="WANDB_API_KEY"):
        open_and_write(config, 0)


class Trackio(ModuleType):
    """Stands in for trackio: remembers what it was told."""

    class Run:
        def __init__(self, name: str) -> None:
            self.name = name
            self.logged: list[tuple[int | None, dict[str, float]]] = []

        def log(self, row: dict[str, float], step: int | None = None) -> None:
            self.logged.append((step, row))

        def finish(self) -> None:
            print("finished")

    def __init__(self) -> None:
        super().__init__("trackio")
        self.calls: list[dict[str, Any]] = []
        self.runs: list[Trackio.Run] = []

    def init(self, **arguments: Any) -> Run:
        if "/" in arguments["project"]:
            raise ValueError("no such name")
        print("initialized")
        self.calls.append(arguments)
        self.runs.append(self.Run(arguments["name"]))
        return self.runs[-1]


def test_a_resumed_run_is_the_same_run_with_trackio(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "trackio", trackio := Trackio())
    config = LoggerConfig(log_dir=tmp_path, use_trackio=True, trackio_project="mine", metrics_ranks=[])
    for resumed_step in (0, 5, 0, 1):
        open_and_write(config, resumed_step)
    names = [run.name for run in trackio.runs]
    assert names[0] == names[1] != names[2] == names[3]
    assert [call["resume"] for call in trackio.calls] == ["never", "allow"] * 2
    assert {call["project"] for call in trackio.calls} == {"mine"}
    assert trackio.calls[0]["config"] == {"trainer": {"seed": 1}}
    assert trackio.runs[1].logged == [(6, {"training/loss": 2.0})]
    assert capsys.readouterr().out == ""  # the program's own output is left alone


def test_without_a_folder_a_run_of_trackio_has_a_name_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trackio", trackio := Trackio())
    for _ in range(2):
        open_and_write(LoggerConfig(use_trackio=True), 0)
    assert len({run.name for run in trackio.runs}) == 2


def test_what_trackio_refuses_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trackio", Trackio())
    with pytest.raises(ConfigError, match=r"logger\.use_trackio: .*no such name"):
        open_and_write(LoggerConfig(use_trackio=True, trackio_project="a/b"), 0)


WRITE = """
import math
import socket
import sys
from pathlib import Path

from scaling.core.logging.config import LoggerConfig
from scaling.core.logging.metrics import MetricWriter
from scaling.core.logging.sinks import open_sinks
from scaling.core.logging.trackers import TrackerSink

connect = socket.socket.connect

def refuse(self, address):
    if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "localhost", "::1"):
        raise SystemExit(f"reached for {address}")
    return connect(self, address)

socket.socket.connect = refuse
config = LoggerConfig.from_dict({"log_dir": sys.argv[1], "metrics_ranks": [], sys.argv[2]: True})
for resumed_step, steps in ((0, (1, 2, 3)), (2, (3, 4))):  # resumed after step 2
    sinks = open_sinks(
        config,
        rank=0,
        positions={"pipe": 0, "data": 0, "model": 0},
        resumed_step=resumed_step,
        total_steps=4,
        run_config={"trainer": {"seed": 1}},
    )
    for step in steps:
        sinks[-1].write(step, {"training/loss": 1 / step, "training/odd": math.nan})
    for sink in sinks:
        sink.close()
"""

READ_TENSORBOARD = """
import json, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
accumulator = EventAccumulator(sys.argv[1] + "/tensorboard")
accumulator.Reload()
print(json.dumps([[event.step, event.value] for event in accumulator.Scalars("training/loss")]))
"""

READ_TRACKIO = """
import json, os, sqlite3, sys
rows = sqlite3.connect(os.environ["TRACKIO_DIR"] + "/scaling.db").execute("select run_id, step, metrics from metrics")
found = [(run, step, json.loads(metrics)) for run, step, metrics in rows]
print(json.dumps([[step, metrics["training/loss"]] for _, step, metrics in sorted(found, key=lambda row: row[1])]))
assert len({run for run, _, _ in found}) == 1, "a resumed run is one run"
"""


def in_a_process(code: str, *arguments: str, **environment: str) -> str:
    """Run `code`, which may import what warns, and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_tensorboard_reads_what_was_written_each_step_once(tmp_path: Path) -> None:
    in_a_process(WRITE, str(tmp_path), "use_tensorboard")
    read = json.loads(in_a_process(READ_TENSORBOARD, str(tmp_path)))
    assert [step for step, _ in read] == [1, 2, 3, 4]
    assert [value for _, value in read] == pytest.approx([1 / step for step in (1, 2, 3, 4)], rel=1e-6)


@pytest.mark.slow
def test_weights_and_biases_keeps_a_run_offline(tmp_path: Path) -> None:
    in_a_process(WRITE, str(tmp_path), "use_wandb", WANDB_MODE="offline", WANDB_SILENT="true")
    files = sorted((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    content = b"".join(file.read_bytes() for file in files)
    assert {file.stem for file in files} == {f"run-{(tmp_path / 'wandb_run_0').read_text()}"}
    assert b"training/loss" in content
    assert all(repr(1 / step).encode() in content for step in (2, 3, 4))


@pytest.mark.slow
def test_trackio_keeps_a_run_on_this_machine(tmp_path: Path) -> None:
    options = {"TRACKIO_DIR": str(tmp_path / "trackio")}
    in_a_process(WRITE, str(tmp_path), "use_trackio", **options)
    assert json.loads(in_a_process(READ_TRACKIO, **options)) == [[step, 1 / step] for step in (1, 2, 3, 3, 4)]
