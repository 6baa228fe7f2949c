"""Machines behind clients: a script plays each of them. Nothing leaves this machine, and nothing stays on it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from scaling.core.errors import ConfigError
from scaling.core.runner import client_process
from scaling.core.runner import fleet as module
from scaling.core.runner.fleet import Fleet, names_of
from scaling.core.runner.order_file import order_file
from scaling.core.runner.outcome import HostLoss, Outcome, ProcessEnd
from scaling.core.runner.plan import HostNeeds, HostPlan, LaunchPlan, Order
from scaling.core.runner.supervisor import Supervisor
from scaling.core.runner.transports.client import Client, Verb
from tests.processes import is_running, wait_until

NODE = Path(__file__).with_name("playing_node.py")


def plan_of(hosts: int, *, directory: str = "/", names: Sequence[str] = ()) -> LaunchPlan:
    return LaunchPlan(
        run_id="run-1",
        hosts=tuple(
            HostPlan(name=names[index] if names else f"me@h{index}", index=index, first_rank=2 * index, processes=2)
            for index in range(hosts)
        ),
        master_addr="h0",
        master_port=29500,
        program=("-m", "training", "config.yml"),
        interpreter=sys.executable,
        directory=directory,
        config_path="config.yml",
    )


class Played:
    """A transport to machines that a script plays; `behaviours` has one for each, the last one for all others too.

    `together`: one client serves all machines and names their lines, as pdsh does.
    """

    needs_file = False

    def __init__(self, folder: Path, *behaviours: str, together: bool = False, stdin_follows: bool = True) -> None:
        self._folder = folder
        self._behaviours = behaviours
        self._together = together
        self.stdin_follows = stdin_follows
        self.asked: list[tuple[Verb, str | None, list[int]]] = []

    def clients(
        self,
        plan: LaunchPlan,
        verb: Verb,
        *,
        order_file: Path | None = None,
        signal: str | None = None,
        only: Sequence[int] | None = None,
    ) -> list[Client]:
        indices = [host.index for host in plan.hosts] if only is None else list(only)
        self.asked.append((verb, signal, indices))
        commands = []
        for index in indices:
            behaviour = self._behaviours[min(index, len(self._behaviours) - 1)]
            commands.append(
                (sys.executable, str(NODE), str(index), plan.run_id, verb.value, str(self._folder), behaviour)
            )
        if self._together and verb is Verb.RUN:
            names = [plan.hosts[index].name for index in indices]
            script = Path(__file__).with_name("playing_pdsh.py")
            argv = (sys.executable, str(script), json.dumps(list(zip(names, commands, strict=True))))
            return [Client(argv=argv, hosts=tuple(indices), takes_input=False, names_lines=True)]
        return [
            Client(
                argv=(*command, *filter(None, [signal])),
                hosts=(index,),
                takes_input=verb is Verb.RUN and self.stdin_follows,
                names_lines=False,
            )
            for index, command in zip(indices, commands, strict=True)
        ]

    def by_hand(self, host: HostPlan) -> str:
        return f"play {host.name}"


def explain(lines: Sequence[str], status: int, host: HostPlan) -> str:
    return f"status {status}: {lines[-1] if lines else 'nothing'}"


@pytest.fixture(autouse=True)
def _source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path("src").resolve()))


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Where the machines leave their traces; none of them may be there when the test is over."""
    yield tmp_path
    pids = [int(path.read_text()) for path in tmp_path.glob("pid_*")]
    wait_until(lambda: not any(map(is_running, pids)), "a client or a node was left behind")


def run(transport: Played, hosts: int = 2, *, grace: float = 60.0, **order: str) -> Outcome:
    fleet = Fleet(Order(plan=plan_of(hosts), secrets=order), transport, explain=explain)
    with Supervisor(grace=grace) as supervisor:
        return fleet.run(supervisor)


def in_the_meantime(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def signal_once_ready(folder: Path, hosts: int, number: int) -> threading.Thread:
    def work() -> None:
        wait_until(lambda: len(list(folder.glob("pid_*"))) == hosts, "not all machines have started")
        os.kill(os.getpid(), number)

    return in_the_meantime(work)


def test_all_machines_are_done(folder: Path) -> None:
    assert run(Played(folder, "done"), hosts=3) == Outcome(status=0)


def test_every_line_is_whole_and_has_its_machines_name(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(Played(folder, "lines:200"), hosts=3).status == 0
    shown = capfd.readouterr()
    for text, word in ((shown.out, "line"), (shown.err, "error")):
        for host in range(3):
            own = [line for line in text.splitlines() if line.startswith(f"h{host}: ")]
            assert own == [f"h{host}: {word} {number}" for number in range(200)]
        assert len(text.splitlines()) == 600


def test_a_machine_gets_its_order_with_secrets_over_its_standard_input(folder: Path) -> None:
    assert run(Played(folder, "tell"), WANDB_API_KEY="canary").status == 0
    for index in range(2):
        order = Order.from_json((folder / f"order_{index}").read_text())
        assert (order.plan, order.secrets) == (plan_of(2), {"WANDB_API_KEY": "canary"})


def test_machines_are_told_that_the_runner_is_alive(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_process, "BEAT_SECONDS", 0.05)
    assert run(Played(folder, "beats:3")).status == 0


def test_the_first_failure_names_its_machine_and_the_others_are_told_to_end(folder: Path) -> None:
    result = run(Played(folder, "listen", "fail:bad data"), grace=0.1)
    assert (result.status, result.reason) == (65, "rank 2 on h1: bad data")
    assert (folder / "asked_0").read_text() == "end"


def test_what_a_machine_cannot_do_is_said_in_its_own_words(folder: Path) -> None:
    result = run(Played(folder, "done", "problem:port 29500 is taken"))
    assert (result.status, result.reason) == (2, "host h1: port 29500 is taken")


def test_a_rank_that_ended_without_a_word_is_shown_with_its_last_lines(folder: Path) -> None:
    result = run(Played(folder, "killed_rank", "done"))
    assert result.status == 137
    lines = result.explain(here="elsewhere").splitlines()
    assert lines[:2] == ["its last lines:", "    the last word"]
    assert lines[2].startswith("error: rank 0 on h0: the process was ended by SIGKILL")
    assert lines[3].startswith("try: ")


def test_a_machine_that_is_gone_is_the_cause_and_is_cleared(folder: Path) -> None:
    transport = Played(folder, "listen", "die")
    result = run(transport, grace=0.1)
    assert isinstance(result.cause, HostLoss)
    assert (result.status, result.cause.host, result.cause.ranks) == (1, "h1", (2, 3))
    assert result.reason == ("host h1 (ranks 2, 3) is gone: status 137: client_loop: send disconnect: Broken pipe")
    assert "working" in result.last_lines
    assert (folder / "clear_1").exists()
    assert not (folder / "clear_0").exists()  # it has said how its processes ended


def test_a_machine_that_does_not_listen_is_ended_and_cleared(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_END_SECONDS", 0.2)
    result = run(Played(folder, "stubborn", "fail:bad data"), grace=0.1)
    assert result.reason == "rank 2 on h1: bad data"
    assert (folder / "clear_0").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP])
def test_a_signal_asks_all_machines_to_leave_over_their_standard_input(folder: Path, number: signal.Signals) -> None:
    thread = signal_once_ready(folder, 2, number)
    assert run(Played(folder, "listen")).status == 75
    thread.join()
    asked = "SIGUSR1" if number is signal.SIGUSR1 else "SIGTERM"
    assert [(folder / f"asked_{index}").read_text() for index in range(2)] == [asked, asked]


def test_a_machine_that_is_asked_while_it_starts_is_not_lost(folder: Path) -> None:
    thread = signal_once_ready(folder, 2, signal.SIGTERM)
    assert run(Played(folder, "early")) == Outcome(status=75)
    thread.join()


def test_a_second_signal_ends_all(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scaling.core.runner.supervisor._SECOND_REQUEST_SECONDS", 0.0)
    monkeypatch.setattr(module, "_END_SECONDS", 0.2)

    with Supervisor(grace=60) as supervisor:

        def work() -> None:
            wait_until(lambda: len(list(folder.glob("pid_*"))) == 2, "not all machines have started")
            os.kill(os.getpid(), signal.SIGTERM)
            wait_until(lambda: supervisor.asked is not None, "the signal was not taken")
            os.kill(os.getpid(), signal.SIGTERM)

        thread = in_the_meantime(work)
        result = Fleet(Order(plan=plan_of(2)), Played(folder, "stubborn"), explain=explain).run(supervisor)
        thread.join()
    assert (result.status, result.cause) == (128 + signal.SIGTERM, None)


def test_without_standard_input_another_client_asks_all_machines_at_once(folder: Path) -> None:
    transport = Played(folder, "stubborn", together=True, stdin_follows=False)
    fleet = Fleet(Order(plan=plan_of(2)), transport, explain=explain)
    thread = signal_once_ready(folder, 2, signal.SIGUSR1)
    with Supervisor(grace=60) as supervisor:

        def force() -> None:
            wait_until(lambda: (folder / "ask_1").exists(), "nobody asked")
            supervisor.forced = True

        killer = in_the_meantime(force)
        fleet.run(supervisor)
    thread.join()
    killer.join()
    assert (Verb.ASK, "USR1", [0, 1]) in transport.asked
    assert (Verb.CLEAR, None, [0, 1]) in transport.asked


def test_a_client_that_names_its_lines_is_read_the_same_way(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    result = run(Played(folder, "lines:2", "fail:bad data", together=True))
    assert (result.status, result.reason) == (65, "rank 2 on h1: bad data")
    assert "h0: line 0\nh0: line 1\n" in capfd.readouterr().out


def test_pdsh_tells_of_a_machine_that_is_gone_before_it_ends(folder: Path) -> None:
    transport = Played(folder, "stubborn", "die", together=True, stdin_follows=False)
    result = run(transport, grace=0.1)
    assert isinstance(result.cause, HostLoss)
    assert (result.cause.host, result.cause.why) == ("h1", "status 255: client_loop: send disconnect: Broken pipe")
    assert {"clear_0", "clear_1"} <= {path.name for path in folder.iterdir()}


def test_an_error_on_the_way_leaves_nothing(folder: Path) -> None:
    class Impatient(Supervisor):
        def check(self) -> None:
            wait_until(lambda: len(list(folder.glob("pid_*"))) == 2, "not all machines have started")
            raise RuntimeError("on the way")

    fleet = Fleet(Order(plan=plan_of(2)), Played(folder, "listen"), explain=explain)
    with pytest.raises(RuntimeError, match="on the way"), Impatient() as supervisor:
        fleet.run(supervisor)


def test_a_client_that_is_not_installed_is_named(folder: Path) -> None:
    client = Client(argv=("no_such_client", "h0"), hosts=(0,), takes_input=True, names_lines=False)
    with pytest.raises(ConfigError, match="no_such_client is not installed"):
        client_process.run_clients([client], seconds=1.0)


def test_reports_are_compared_by_the_runners_own_clock(folder: Path) -> None:
    fleet = Fleet(Order(plan=plan_of(2)), Played(folder, "fail:late"), explain=explain, offsets={0: -1000.0})
    with Supervisor(grace=60) as supervisor:
        result = fleet.run(supervisor)
    assert isinstance(result.cause, ProcessEnd)
    assert result.cause.host == "h1"


def test_an_order_file_is_for_its_user_alone_without_secrets_and_goes_away(tmp_path: Path) -> None:
    plan = plan_of(1, directory=str(tmp_path))
    order = Order(plan=plan, attempt=2, secrets={"TOKEN": "canary"}, config_text="text")
    with order_file(order) as path:
        assert path.parent == tmp_path
        assert path.stat().st_mode & 0o777 == 0o600
        assert Order.from_json(path.read_text()) == Order(plan=plan, attempt=2)
    assert list(tmp_path.iterdir()) == []
    logs = LaunchPlan.from_dict(
        {**plan.as_dict(), "needs": HostNeeds(folders=(("logger.log_dir", "runs/a"),)).__dict__}
    )
    with order_file(Order(plan=logs)) as path:
        assert path.parent == tmp_path / "runs" / "a"


def test_pdsh_may_leave_out_the_user_and_the_domain() -> None:
    plan = plan_of(3, names=("me@a.example.org", "b", "10.0.0.3"))
    assert names_of(plan) == {"a.example.org": 0, "a": 0, "b": 1, "10.0.0.3": 2}


PROGRAM = """
import sys
from pathlib import Path
from scaling.core.runner.fleet import Fleet
from scaling.core.runner.plan import Order
from scaling.core.runner.supervisor import Supervisor
from tests.core.runner.test_fleet import Played, explain, plan_of
folder, behaviour, together = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "together"
played = Played(folder, behaviour, together=together, stdin_follows=not together)
with Supervisor(grace=60) as supervisor:
    sys.exit(Fleet(Order(plan=plan_of(2)), played, explain=explain).run(supervisor).status)
"""


@pytest.fixture
def start(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Run a fleet in a process of its own, which may be killed."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path("src").resolve()), str(Path.cwd())]))
    started: list[subprocess.Popen[bytes]] = []

    def start_it(behaviour: str, kind: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", PROGRAM, str(folder), behaviour, kind]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
        return started[-1]

    yield start_it
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("kind", ["each", "together"])
def test_when_the_runner_is_killed_every_machine_reads_the_end_of_its_input(
    folder: Path, start: Callable[..., subprocess.Popen[bytes]], kind: str
) -> None:
    process = start("listen", kind)
    wait_until(
        lambda: sum(bool(path.read_text()) for path in folder.glob("pid_*")) == 2, "not all machines have started"
    )
    process.kill()
    process.wait(60)
    pids = [int(path.read_text()) for path in folder.glob("pid_*")]
    wait_until(lambda: not any(map(is_running, pids)), "a machine goes on without its runner")


def test_output_that_nobody_reads_ends_all_without_a_word(
    folder: Path, start: Callable[..., subprocess.Popen[bytes]]
) -> None:
    process = start("endless", "each")
    assert process.stdout is not None
    assert process.stdout.readline()
    process.stdout.close()
    assert process.wait(60) == 141
    assert process.stderr is not None
    assert process.stderr.read() == b""
