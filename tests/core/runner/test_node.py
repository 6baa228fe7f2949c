"""Nodes: what each machine of a run starts, passes on, says about its end, and leaves behind. Both are this machine."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import pytest

from scaling.core.runner.environment import NODE_VARIABLE
from scaling.core.runner.node_report import NodeReport
from scaling.core.runner.plan import HostNeeds, HostPlan, LaunchPlan, Order
from tests.processes import is_running, wait_until

RUN = "run-1"
NODE = [sys.executable, "-u", "-m", "scaling.core.runner.node"]

TELL = """
import json, os, sys
names = "RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT GIVEN MY_TOKEN OWN".split()
print(json.dumps({name: os.environ.get(name) for name in names}), flush=True)
print("an error line", file=sys.stderr)
copy = os.environ.get("SCALING_CONFIG_COPY")
if copy:
    print("copy", json.load(open(copy))["text"])
"""
DIE = """
import os, signal, time
rank = int(os.environ["RANK"])
print(f"rank {rank} says its last words", flush=True)
if rank == 2:
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(60)
"""
OBEY = """
import os, signal, sys, time
def leave(number, frame):
    print("asked by", signal.Signals(number).name, flush=True)
    time.sleep(0.5)
    sys.exit(75)
signal.signal(signal.SIGTERM, leave)
signal.signal(signal.SIGUSR1, leave)
print("pid", os.getpid(), flush=True)
time.sleep(600)
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def planned(tmp_path: Path, program: str, processes: list[int]) -> LaunchPlan:
    script = tmp_path / "program.py"
    script.write_text(program)
    first, hosts = 0, []
    for index, count in enumerate(processes):
        environment = {"OWN": f"of {index}"}
        hosts.append(
            HostPlan(name=f"h{index}", index=index, first_rank=first, processes=count, environment=environment)
        )
        first += count
    return LaunchPlan(
        run_id=RUN,
        hosts=tuple(hosts),
        master_addr="127.0.0.1",
        master_port=free_port(),
        program=(str(script),),
        interpreter=sys.executable,
        directory=str(tmp_path),
        config_path="config.yml",
        environment={"GIVEN": "1"},
        secrets=("MY_TOKEN",),
        needs=HostNeeds(),
    )


class Node:
    """A node as the runner starts it, on this machine."""

    def __init__(self, order: Order, index: int, **more: Any) -> None:
        arguments = ["run", "--index", str(index), "--run", RUN]
        folder = order.plan.directory
        environment = {**os.environ, NODE_VARIABLE: f"{RUN}/{index}", "TMPDIR": folder}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            [*NODE, *arguments], stdin=pipe, stdout=pipe, stderr=pipe, env=environment, start_new_session=True, **more
        )
        self.say(order.to_json())

    @property
    def stdin(self) -> IO[bytes]:
        assert self.process.stdin is not None
        return self.process.stdin

    def say(self, line: str) -> None:
        self.stdin.write(line.encode() + b"\n")
        self.stdin.flush()

    def line(self) -> str:
        assert self.process.stdout is not None
        line: bytes = self.process.stdout.readline()
        return line.decode().rstrip("\n")

    def finish(self, seconds: float = 60.0) -> tuple[list[str], NodeReport, int]:
        assert self.process.stdout is not None
        out: bytes = self.process.stdout.read()  # not by `communicate`, which would end the lifeline
        self.process.wait(seconds)
        *lines, last = out.decode().splitlines()
        report = NodeReport.from_line(last, run_id=RUN)
        assert report is not None, last
        return lines, report, self.process.returncode


@pytest.fixture
def start() -> Iterator[Callable[..., Node]]:
    started: list[Node] = []

    def start(order: Order, index: int, **more: Any) -> Node:
        started.append(Node(order, index, **more))
        return started[-1]

    yield start
    for node in started:
        with suppress(ProcessLookupError):
            os.killpg(node.process.pid, signal.SIGKILL)
        node.process.wait()
        for stream in (node.process.stdin, node.process.stdout, node.process.stderr):
            if stream is not None:
                with suppress(OSError):
                    stream.close()


def test_ranks_and_environment_are_those_of_the_plan(tmp_path: Path, start: Callable[..., Node]) -> None:
    plan = planned(tmp_path, TELL, [1, 3])
    order = Order(plan=plan, secrets={"MY_TOKEN": "hush"}, config_text="a: 1")
    nodes = [start(order, index) for index in range(2)]
    found: list[dict[str, str]] = []
    for index, node in enumerate(nodes):
        lines, report, status = node.finish()
        assert status == 0
        assert [(end.rank, end.exit_code, end.host) for end in report.ends] == [
            (rank, 0, f"h{index}") for rank in plan.hosts[index].ranks
        ]
        found += [json.loads(line) for line in lines if line.startswith("{")]
        assert lines.count("copy a: 1") == plan.hosts[index].processes
        assert all(end.last_lines == () for end in report.ends), "they are for those that failed"
    assert sorted((each["RANK"], each["LOCAL_RANK"], each["LOCAL_WORLD_SIZE"], each["OWN"]) for each in found) == [
        ("0", "0", "1", "of 0"),
        ("1", "0", "3", "of 1"),
        ("2", "1", "3", "of 1"),
        ("3", "2", "3", "of 1"),
    ]
    common = {"WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1", "GIVEN": "1", "MY_TOKEN": "hush"}
    assert all({**each, **common, "MASTER_PORT": str(plan.master_port)} == each for each in found)


def test_a_dead_process_is_reported_with_its_last_lines(tmp_path: Path, start: Callable[..., Node]) -> None:
    order = Order(plan=planned(tmp_path, DIE, [1, 2]))
    nodes = [start(order, index) for index in range(2)]
    _, report, status = nodes[1].finish()
    assert status == 128 + signal.SIGKILL
    dead = next(end for end in report.ends if end.rank == 2)
    assert (dead.exit_code, dead.last_lines) == (-signal.SIGKILL, ("rank 2 says its last words",))
    nodes[0].say('{"end": true}')
    _, report, _ = nodes[0].finish()
    assert report.ends[0].exit_code < 0


@pytest.mark.parametrize(("word", "name"), [(None, "SIGTERM"), ('{"ask": "SIGUSR1"}', "SIGUSR1")])
def test_processes_are_asked_to_leave_by_a_word_or_the_end_of_the_lifeline(
    tmp_path: Path, start: Callable[..., Node], word: str | None, name: str
) -> None:
    node = start(Order(plan=planned(tmp_path, OBEY, [2])), 0)
    pids = [int(node.line().split()[1]) for _ in range(2)]
    if word is None:
        node.stdin.close()
    else:
        node.say(word)
    lines, report, status = node.finish()
    assert lines == [f"asked by {name}"] * 2
    assert status == 75
    assert {end.exit_code for end in report.ends} == {75}
    assert not any(map(is_running, pids))


def test_the_end_of_the_lifeline_does_not_hurry_those_who_are_leaving(
    tmp_path: Path, start: Callable[..., Node]
) -> None:
    node = start(Order(plan=planned(tmp_path, OBEY.replace("0.5", "1.5"), [1])), 0)
    node.line()
    node.say('{"ask": "SIGTERM"}')
    assert node.line() == "asked by SIGTERM"
    time.sleep(0.7)  # longer than signals that are one request are apart
    node.stdin.close()
    _, report, status = node.finish()
    assert (status, [end.exit_code for end in report.ends]) == (75, [75])


def test_processes_leave_when_their_node_is_killed(tmp_path: Path, start: Callable[..., Node]) -> None:
    program = OBEY.replace("import os", "from scaling.core.runner.process import _end_with_runner\nimport os", 1)
    program = program.replace("print(", "_end_with_runner()\nprint(", 2).replace("_end_with_runner()\n", "", 1)
    node = start(Order(plan=planned(tmp_path, program, [1])), 0)
    pid = int(node.line().split()[1])
    node.process.kill()
    wait_until(lambda: not is_running(pid), "the process of a killed node was left behind")


def test_who_does_not_read_stops_no_process(tmp_path: Path, start: Callable[..., Node]) -> None:
    done = tmp_path / "done"
    program = f"import pathlib\nfor n in range(40_000): print('x' * 100)\npathlib.Path({str(done)!r}).touch()\n"
    node = start(Order(plan=planned(tmp_path, program, [1])), 0)
    wait_until(done.exists, "the process waits for somebody to read what it prints", seconds=60)
    node.process.wait(30)


def test_a_machine_leaves_that_waits_for_others_in_vain(tmp_path: Path, start: Callable[..., Node]) -> None:
    node = start(Order(plan=planned(tmp_path, OBEY, [1, 1])), 1)
    time.sleep(3.0)
    node.stdin.close()
    _, report, status = node.finish(20)
    assert (status, report.ends, report.problem) == (75, (), None)


def test_a_port_that_is_taken_is_named(tmp_path: Path, start: Callable[..., Node]) -> None:
    plan = planned(tmp_path, OBEY, [1, 1])
    with socket.socket() as taken:
        taken.bind(("", plan.master_port))
        taken.listen()
        _, report, status = start(Order(plan=plan), 0).finish()
    assert status == 2
    assert report.problem is not None
    assert f"port {plan.master_port}" in report.problem.message
    assert "set runner.master_port" in report.problem.message


@pytest.mark.parametrize("delay", [0.0, 0.1, 0.2, 0.4])
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_while_the_node_starts_means_what_it_means_later(
    tmp_path: Path, start: Callable[..., Node], delay: float, number: signal.Signals
) -> None:
    node = start(Order(plan=planned(tmp_path, OBEY, [1])), 0)
    time.sleep(delay)
    node.process.send_signal(number)
    allowed = {75} if delay else {75, -number}  # Python itself takes some milliseconds until it can be asked to listen
    assert node.process.wait(30) in allowed


def test_asking_and_clearing_find_the_processes_of_this_machine_alone(
    tmp_path: Path, start: Callable[..., Node]
) -> None:
    order = Order(plan=planned(tmp_path, OBEY, [1]))
    first = start(order, 0)
    pid = int(first.line().split()[1])
    other = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)"], env={**os.environ, NODE_VARIABLE: f"{RUN}/1"}
    )
    try:
        verb = [*NODE, "ask", "--index", "0", "--run", RUN, "--signal", "USR1"]
        subprocess.run(verb, env={**os.environ, NODE_VARIABLE: f"{RUN}/0"}, check=True)
        assert first.line() == "asked by SIGUSR1"
        folders = list(tmp_path.glob(f"scaling_node_{RUN}_0_*"))
        assert len(folders) == 1
        here = {**os.environ, "TMPDIR": str(tmp_path)}
        subprocess.run([*NODE, "clear", "--index", "0", "--run", RUN], env=here, check=True)
        assert not folders[0].exists()
        first.process.wait(10)
        wait_until(lambda: not is_running(pid), "something was left")
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()
