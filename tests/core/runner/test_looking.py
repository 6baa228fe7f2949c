"""All machines are looked at before a run starts, at the same time, and whatever keeps one from answering is named."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from scaling.core.runner.look import TOKEN_FILE
from scaling.core.runner.looking import look_everywhere
from scaling.core.runner.plan import HostNeeds, HostPlan, LaunchPlan
from scaling.core.runner.transports.client import Client, Verb, node_arguments

PYTHON = (sys.executable, "-c")
DEAD = "import sys; sys.exit('ssh: connect to host h2 port 22: No route to host')"
MUTE = "print('hello')"
SLOW = "import time; time.sleep(60)"
GREETING = "import sys, time; print('Welcome', file=sys.stderr, flush=True); time.sleep(60)"
LEAVING = (
    f"import subprocess, sys; left = subprocess.Popen([sys.executable, '-c', {SLOW!r}], start_new_session=True); "
    f"open('LEFT', 'a').write(str(left.pid) + chr(10)); {DEAD}"
)
INTERRUPTING = "import os, signal, time; os.kill(os.getppid(), signal.SIGINT); time.sleep(60)"


class Played:
    """Machines that all are this one, or programs that play one which fails."""

    def __init__(self, *behaviours: str | None, together: bool = False) -> None:
        self._behaviours = behaviours
        self.needs_file = together
        self.stdin_follows = not together

    def clients(
        self,
        plan: LaunchPlan,
        verb: Verb,
        *,
        order_file: Path | None = None,
        signal: str | None = None,
        only: Sequence[int] | None = None,
    ) -> list[Client]:
        clients = []
        for index, behaviour in enumerate(self._behaviours):
            node = (sys.executable, *node_arguments(plan, verb, index=str(index), order_file=order_file))
            argv = node if behaviour is None else (*PYTHON, behaviour)
            clients.append(Client(argv=argv, hosts=(index,), takes_input=order_file is None, names_lines=False))
        return clients

    def by_hand(self, host: HostPlan) -> str:
        return f"ssh {host.name} true"


def planned(tmp_path: Path, machines: int) -> LaunchPlan:
    config = tmp_path / "config.yml"
    config.write_text("a: 1")
    return LaunchPlan(
        run_id="run-1",
        hosts=tuple(HostPlan(name=f"h{n + 1}", index=n, first_rank=n, processes=1) for n in range(machines)),
        master_addr="localhost",
        master_port=29512,
        program=("-m", "train"),
        interpreter=sys.executable,
        directory=str(tmp_path),
        config_path=str(config),
        needs=HostNeeds(files=(str(config),), folders=(("logger.log_dir", str(tmp_path / "logs")),), device="cpu"),
    )


@pytest.mark.parametrize("together", [False, True])
def test_machines_are_looked_at_and_nothing_is_left(tmp_path: Path, together: bool) -> None:
    findings = look_everywhere(planned(tmp_path, 1), Played(None, together=together), config_text=None)
    assert findings.table().splitlines()[1:] == []
    assert findings.error() is None
    assert list((tmp_path / "logs").iterdir()) == [], f"{TOKEN_FILE} and the order are removed"


def test_two_names_of_this_machine_are_found_out(tmp_path: Path) -> None:
    findings = look_everywhere(planned(tmp_path, 2), Played(None, None), config_text=None)
    assert "h1, h2" in findings.table()
    assert "are names of one machine" in " ".join(findings.table().split())


def test_whatever_keeps_machines_from_answering_is_named_in_time(tmp_path: Path) -> None:
    begun = time.monotonic()
    findings = look_everywhere(planned(tmp_path, 4), Played(DEAD, MUTE, SLOW, DEAD), config_text=None, seconds=4.0)
    assert time.monotonic() - begun < 10.0
    table = " ".join(findings.table().split())
    assert "h1 there is no route to it; is it switched on, and its network up? (try: ssh h1 true)" in table
    assert "h2 it ended with status 0 without a word (try: ssh h2 true)" in table
    assert "h3 it did not answer within 4 s (try: ssh h3 true)" in table
    assert "h4 there is no route to it" in table


class PlayedTogether(Played):
    """Machines that one program reaches, which names their lines."""

    def __init__(self, behaviour: str) -> None:
        super().__init__(behaviour, together=True)
        self._behaviour = behaviour

    def clients(
        self,
        plan: LaunchPlan,
        verb: Verb,
        *,
        order_file: Path | None = None,
        signal: str | None = None,
        only: Sequence[int] | None = None,
    ) -> list[Client]:
        hosts = tuple(host.index for host in plan.hosts)
        return [Client(argv=(*PYTHON, self._behaviour), hosts=hosts, takes_input=False, names_lines=True)]


def test_what_pdsh_says_of_itself_is_said_of_its_machines(tmp_path: Path) -> None:
    transport = PlayedTogether("import sys; sys.exit('No such rcmd module \"ssh\"')")
    table = look_everywhere(planned(tmp_path, 2), transport, config_text=None).table()
    assert table.count('No such rcmd module "ssh" (try: ssh h') == 2
    assert "without a word" not in table


def test_one_machine_of_pdsh_that_hangs_hides_no_other(tmp_path: Path) -> None:
    transport = PlayedTogether(
        "import sys, time\n"
        "for line in ('h1: ssh: connect to host h1 port 22: No route to host', 'h2: Welcome', "
        "'pdsh@here: h1: ssh exited with exit code 255'): print(line, file=sys.stderr, flush=True)\n"
        "time.sleep(60)"
    )
    findings = look_everywhere(planned(tmp_path, 3), transport, config_text=None, seconds=2.0)
    table = " ".join(findings.table().split())
    assert "h1 there is no route to it" in table
    assert "h2 it did not answer within 2 s; it last said: Welcome (try: ssh h2 true)" in table
    assert "h3 it did not answer within 2 s (try: ssh h3 true)" in table


def test_a_greeting_is_no_reason(tmp_path: Path) -> None:
    findings = look_everywhere(planned(tmp_path, 1), Played(GREETING), config_text=None, seconds=2.0)
    assert "it did not answer within 2 s; it last said: Welcome" in findings.table()


def test_an_order_that_cannot_be_written_is_a_problem_of_this_machine(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    plan = planned(tmp_path, 1)
    needs = dataclasses.replace(plan.needs, folders=(("logger.log_dir", str(tmp_path / "file/logs")),))
    findings = look_everywhere(dataclasses.replace(plan, needs=needs), Played(None, together=True), config_text=None)
    assert [problem.host for problem in findings.problems] == ["here"]
    assert "Not a directory; start in a folder that all machines share" in " ".join(findings.table().split())


def test_what_clients_leave_in_the_background_keeps_nobody_waiting(tmp_path: Path) -> None:
    """As an ssh with ControlPersist does, which keeps standard error open."""
    begun = time.monotonic()
    left = tmp_path / "left"
    leaving = LEAVING.replace("LEFT", str(left))
    findings = look_everywhere(planned(tmp_path, 8), Played(*[leaving] * 8), config_text=None)
    took = time.monotonic() - begun
    for pid in left.read_text().split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    assert len(findings.problems) == 8
    assert all("there is no route to it" in problem.message for problem in findings.problems)
    assert took < 7.0, "about 2 s for all, not for each"


def test_a_look_that_is_interrupted_leaves_nothing(tmp_path: Path) -> None:
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        look_everywhere(planned(tmp_path, 2), Played(SLOW, INTERRUPTING), config_text=None)
    assert time.monotonic() - begun < 10.0
    assert list((tmp_path / "logs").iterdir()) == []


class StartedAtAnInterrupt(subprocess.Popen[bytes]):
    """A client during whose start somebody presses Ctrl-C."""

    started: ClassVar[list[subprocess.Popen[bytes]]] = []

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.started.append(self)
        signal.raise_signal(signal.SIGINT)


def test_a_look_that_is_interrupted_while_clients_start_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StartedAtAnInterrupt, "started", [])
    monkeypatch.setattr(subprocess, "Popen", StartedAtAnInterrupt)
    with pytest.raises(KeyboardInterrupt):
        look_everywhere(planned(tmp_path, 2), Played(SLOW, SLOW), config_text=None)
    assert [client.returncode for client in StartedAtAnInterrupt.started] == [-signal.SIGKILL] * 2
