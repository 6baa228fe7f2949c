"""Fault points: how faults are named, which passage fails, and in which way."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
import timeit
from collections.abc import Iterator
from pathlib import Path

import pytest

from scaling.core import faults
from scaling.core.faults import Fault, InjectedFault

SOURCE = str(Path(faults.__file__).parents[2])


@pytest.fixture(autouse=True)
def fresh_counts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(faults.VARIABLE, raising=False)
    monkeypatch.delenv("RANK", raising=False)
    faults.forget_passages()
    yield
    faults.forget_passages()


def run(fault: str, *, rank: int = 0, body: str = "") -> subprocess.CompletedProcess[str]:
    program = f"from scaling.core import faults\n{body}\nfaults.point('here')\nprint('passed')"
    environment = {"PYTHONPATH": SOURCE, faults.VARIABLE: fault, "RANK": str(rank)}
    return subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60)


def test_an_unarmed_point_does_nothing_and_costs_nothing() -> None:
    seconds = min(timeit.repeat(lambda: faults.point("step.before_forward"), number=1000, repeat=5)) / 1000
    assert seconds < 20e-6


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("save.after_data@1:2=kill", Fault("save.after_data", 1, 2, "kill")),
        ("save.after_data=raise", Fault("save.after_data", None, 1, "raise")),
        ("data.fetch@*:*=eio", Fault("data.fetch", None, None, "eio")),
    ],
)
def test_a_specification_names_point_rank_passage_and_action(text: str, expected: Fault) -> None:
    assert faults.parse(text) == (expected,)


def test_several_faults_are_separated_by_commas() -> None:
    assert [fault.name for fault in faults.parse("a=kill, b@3=hang,")] == ["a", "b"]


@pytest.mark.parametrize("text", ["nothing", "a=explode", "a:0=kill", "a@-1=kill", "=kill", "a@b=kill"])
def test_a_specification_that_cannot_be_read_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(faults.VARIABLE, text)
    with pytest.raises(ValueError, match="SCALING_FAULT"):
        faults.point("a")


def test_only_the_named_point_rank_and_passage_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(faults.VARIABLE, "here@1:2=raise")
    monkeypatch.setenv("RANK", "1")
    faults.point("here")
    faults.point("elsewhere")
    faults.point("here", rank=0)
    with pytest.raises(InjectedFault, match="here on rank 1"):
        faults.point("here")
    faults.point("here")


def test_every_passage_fails_where_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(faults.VARIABLE, "here:*=enospc")
    for _ in range(3):
        with pytest.raises(OSError, match="injected") as caught:
            faults.point("here")
        assert caught.value.errno == errno.ENOSPC


def test_each_fault_counts_all_passages_of_its_point(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(faults.VARIABLE, "here:1=eio,here:2=raise")
    with pytest.raises(OSError, match="injected"):
        faults.point("here")
    with pytest.raises(InjectedFault):
        faults.point("here")
    faults.point("here")


def test_an_input_output_error_is_an_os_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(faults.VARIABLE, "here=eio")
    with pytest.raises(OSError, match="injected") as caught:
        faults.point("here")
    assert caught.value.errno == errno.EIO


@pytest.mark.parametrize(
    ("action", "status"),
    [("kill", -signal.SIGKILL), ("exit", faults.EXIT_STATUS), ("term", -signal.SIGTERM), ("usr1", -signal.SIGUSR1)],
)
def test_a_process_dies_the_way_the_action_says(action: str, status: int) -> None:
    died = run(f"here={action}")
    assert (died.returncode, died.stdout) == (status, "")


def test_another_rank_passes() -> None:
    assert run("here@1=kill", rank=0).stdout == "passed\n"


def test_a_fault_may_be_armed_after_the_module_was_imported() -> None:
    armed_late = run("", body="import os; os.environ['SCALING_FAULT'] = 'here=exit'")
    assert armed_late.returncode == faults.EXIT_STATUS


def test_a_hang_does_not_return() -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        subprocess.run(
            [sys.executable, "-c", "from scaling.core import faults; faults.point('here')"],
            env={"PYTHONPATH": SOURCE, faults.VARIABLE: "here=hang"},
            timeout=1,
        )
