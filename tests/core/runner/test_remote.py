"""A training on several machines, from the look at them to its next attempt; a script plays the machines."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from scaling.core.errors import ConfigError
from scaling.core.runner import remote
from scaling.core.runner.attempts import run_attempts
from scaling.core.runner.config import RunnerConfig
from scaling.core.runner.plan import LaunchPlan, Order
from scaling.core.runner.remote import RemoteJob, plan_of_attempt
from scaling.core.topology.launch import ATTEMPT_VARIABLE
from tests.core.runner.test_fleet import Played, plan_of
from tests.processes import is_running, wait_until


@dataclasses.dataclass(frozen=True)
class Found:
    """What a look at the machines may find."""

    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    environment: Mapping[int, Mapping[str, str]] = dataclasses.field(default_factory=dict)

    offsets: Mapping[int, float] = dataclasses.field(default_factory=dict)

    def error(self) -> ConfigError | None:
        return ConfigError("\n".join(self.problems)) if self.problems else None


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("PYTHONPATH", str(Path("src").resolve()))
    yield tmp_path
    pids = [int(path.read_text()) for path in tmp_path.glob("pid_*")]
    wait_until(lambda: not any(map(is_running, pids)), "a client or a node was left behind")


Look = Callable[[Found], list[LaunchPlan]]


@pytest.fixture
def look(monkeypatch: pytest.MonkeyPatch) -> Look:
    """Let the look at the machines find this; returns the list of the plans it was called with."""

    def find(found: Found) -> list[LaunchPlan]:
        seen: list[LaunchPlan] = []

        def look_everywhere(plan: LaunchPlan, *_: Any, **named: Any) -> Found:
            seen.append(plan)
            return found

        monkeypatch.setattr(remote, "look_everywhere", look_everywhere)
        monkeypatch.setattr(remote, "explain", lambda lines, status, **named: f"status {status}")
        monkeypatch.setattr(remote, "require_programs", lambda *arguments, **named: None)
        return seen

    return find


def job(transport: Played, *, config_text: str | None = "text") -> RemoteJob:
    return RemoteJob(plan_of(2), transport, RunnerConfig(), config_text=config_text)


def test_problems_are_told_and_nothing_is_started(folder: Path, look: Look) -> None:
    look(Found(problems=("h0: no route", "h1: refused")))
    transport = Played(folder, "done")
    with pytest.raises(ConfigError, match="h0: no route\nh1: refused"):
        run_attempts(job(transport), max_restarts=1, log_dir=None)
    assert transport.asked == []


def test_what_the_look_has_shown_reaches_the_machine(
    folder: Path, look: Look, capfd: pytest.CaptureFixture[str]
) -> None:
    look(Found(notes=("h1 calls itself 127.0.1.1",), environment={1: {"GLOO_SOCKET_IFNAME": "eth0"}}))
    assert run_attempts(job(Played(folder, "tell")), max_restarts=0, log_dir=None) == 0
    assert capfd.readouterr().err == "note: h1 calls itself 127.0.1.1\n"
    order = Order.from_json((folder / "order_0").read_text())
    assert order.config_text == "text"
    assert [host.environment for host in order.plan.hosts] == [{}, {"GLOO_SOCKET_IFNAME": "eth0"}]


def test_every_attempt_clears_looks_again_and_has_a_port_of_its_own(
    folder: Path, look: Look, capfd: pytest.CaptureFixture[str]
) -> None:
    seen = look(Found(notes=("once",)))
    transport = Played(folder, "done", "die")
    assert run_attempts(job(transport), max_restarts=1, log_dir=None) == 1
    assert [plan.master_port for plan in seen] == [29500, 29501]
    verbs = [(verb.value, hosts) for verb, _, hosts in transport.asked]
    once = [("run", [0, 1]), ("clear", [1])]
    assert verbs == [*once, ("clear", [0, 1]), *once]
    shown = capfd.readouterr().err
    assert shown.count("note: once") == 1
    assert "attempt 1 of 2 ended: host h1 (ranks 2, 3) is gone: status 137; starting again" in shown


def test_an_order_in_a_file_carries_neither_secrets_nor_the_configuration(
    folder: Path, look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    look(Found())
    monkeypatch.setenv("NCCL_TOKEN", "canary")
    transport = Played(folder, "done")
    transport.needs_file = True
    plan = dataclasses.replace(plan_of(2), directory=str(folder))
    written: list[str] = []

    def clients(*arguments: Any, order_file: Path | None = None, **named: Any) -> Any:
        if order_file is not None:
            written.append(order_file.read_text())
        return original(*arguments, order_file=order_file, **named)

    original = transport.clients
    monkeypatch.setattr(transport, "clients", clients)
    remote_job = RemoteJob(plan, transport, RunnerConfig(), config_text="text")
    assert run_attempts(remote_job, max_restarts=0, log_dir=None) == 0
    [text] = written
    assert "canary" not in text
    assert (Order.from_json(text).config_text, Order.from_json(text).secrets) == (None, {})
    assert list(folder.glob(".scaling_order*")) == []


def test_processes_learn_the_number_of_their_attempt() -> None:
    plan = plan_of_attempt(plan_of(2), 3, {})
    assert plan.environment == {ATTEMPT_VARIABLE: "3"}
