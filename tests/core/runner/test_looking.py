"""All machines are looked at before a run starts, at the same time, and whatever keeps one from answering is named."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from scaling.core.runner.look import TOKEN_FILE
from scaling.core.runner.looking import look_everywhere
from scaling.core.runner.plan import HostNeeds, HostPlan, LaunchPlan
from scaling.core.runner.transports.client import Client, Verb, node_arguments

PYTHON = (sys.executable, "-c")
DEAD = "import sys; sys.exit('ssh: connect to host h2 port 22: No route to host')"
MUTE = "print('hello')"
SLOW = "import time; time.sleep(60)"


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
