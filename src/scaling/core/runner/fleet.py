"""Fleet: the machines of one attempt, each reached by a client: started, listened to, asked to leave, cleared."""

from __future__ import annotations

import dataclasses
import re
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final, final

from scaling.core.errors import OUTPUT_CLOSED, ExitStatus
from scaling.core.runner.client_process import ClientProcess, run_clients
from scaling.core.runner.gathering import Gathering
from scaling.core.runner.node_report import NodeReport
from scaling.core.runner.outcome import HostLoss, Outcome, ProcessEnd, outcome
from scaling.core.runner.output import Output
from scaling.core.runner.plan import HostPlan, LaunchPlan, Order
from scaling.core.runner.report import Report
from scaling.core.runner.supervisor import POLL_SECONDS, Supervisor
from scaling.core.runner.transports.client import Client, Transport, Verb

FLEET_GRACE_SECONDS: Final = 10.0
"""How long the other machines may take to end by themselves once one has failed: each gives its processes 5 seconds."""
CLEAR_SECONDS: Final = 6.0
"""How long a machine may take to be cleared: more than the timeout of connecting to one that does not answer."""
_END_SECONDS: Final = 2.0
"""How long a machine that is told to end at once may take to report how its processes ended."""
_LAST_LINES: Final = 20
_LEFT_EARLY: Final = (ExitStatus.PREEMPTED, 128 + signal.SIGTERM, 128 + signal.SIGUSR1)
"""Exit statuses of a node that is asked to leave before it has read its order, or before Python handles signals."""
_ASK_SECONDS: Final = 30.0
"""How long the request to leave is repeated to a machine that has no node yet."""
_ASK_AGAIN_SECONDS: Final = 0.5
_SHOWN_LINES: Final = 5
_LATE_REPORT_SECONDS: Final = 1.0
"""How long to wait after pdsh has reported a lost machine, whose last lines may still be on their way."""
_PDSH_LOST: Final = re.compile(r"pdsh@[^:]*: (?P<host>[^:]+): ssh exited with exit code (?P<code>\d+)")

_CONNECTION: Final = re.compile(r"^(ssh: |client_loop|Timeout, server|packet_write|Connection (to|closed|reset))")
"""Messages of ssh when it loses an established connection."""

Explain = Callable[[Sequence[str], int, HostPlan], str]
"""Returns, in words, why a client that printed these lines and ended with this status lost a machine."""


@final
class Fleet:
    """The machines of one attempt as a crew; members are the numbers of the machines in the plan.

    Lines from the machines go to this process's own output, each with the name of its machine. `offsets` gives the
    seconds by which the clock of a machine is ahead of this machine's. Call `run` once; when it returns or raises, no
    client is left, and leftover processes on machines that were lost or killed have been cleared where the machines can
    be reached.
    """

    def __init__(
        self,
        order: Order,
        transport: Transport,
        *,
        explain: Explain,
        order_file: Path | None = None,
        offsets: Mapping[int, float] = MappingProxyType({}),
    ) -> None:
        self._order = order
        self._plan = order.plan
        self._transport = transport
        self._explain = explain
        self._order_file = order_file
        self._offsets = offsets
        self._by_name = names_of(self._plan)
        self._clients: dict[int, ClientProcess] = {}
        self._reports: dict[int, NodeReport] = {}
        self._noticed: dict[int, tuple[float, int]] = {}  # machines that pdsh lost: when, and ssh's status
        self._asked: dict[int, signal.Signals] = {}
        self._ending: set[int] = set()
        self._cleared: set[int] = set()
        self._at_work: set[int] = set()  # machines whose processes have printed something
        self._lines = {host.index: deque[str](maxlen=_LAST_LINES) for host in self._plan.hosts}
        self._errors = {host.index: deque[str](maxlen=_LAST_LINES) for host in self._plan.hosts}
        self._output = Output()
        self._requests = Gathering(self._ask_all)
        self._endings = Gathering(self._end_all)

    def run(self, supervisor: Supervisor) -> Outcome:
        """Start all machines and wait, watched by `supervisor`, until all have ended; return the outcome."""
        started: list[ClientProcess] = []
        try:
            lines = [self._order.to_json()]
            for client in self._transport.clients(self._plan, Verb.RUN, order_file=self._order_file):
                process = ClientProcess(client, self._take, lines=lines if client.takes_input else ())
                started.append(process)
                self._clients.update(dict.fromkeys(client.hosts, process))
            supervisor.crew = self
            while any(code is None for code in self.ends().values()):
                supervisor.check()
                if self._output.is_closed:
                    for member in self._clients:
                        self.kill(member)
                time.sleep(POLL_SECONDS)
            supervisor.check()
            return self._outcome(supervisor)
        finally:
            self._close(started)

    def ends(self) -> Mapping[int, int | None]:
        """Return the exit status of each machine, None while it is running."""
        return {index: self._status(index) for index in self._clients}

    def has_ended(self, member: int) -> bool:
        """Return False: the exit status of a machine is known as soon as it has ended."""
        return False

    def ask(self, member: int, number: signal.Signals) -> None:
        """Ask a machine's processes to leave."""
        self._asked.setdefault(member, number)
        client = self._clients[member]
        if self._transport.stdin_follows and client.client.takes_input:
            client.send({"ask": number.name})
        else:
            self._requests.put(member)

    def kill(self, member: int) -> None:
        """End what a machine runs, within the sum of `_END_SECONDS` and `CLEAR_SECONDS`; return at once."""
        if member in self._ending or member in self._reports:
            return
        self._ending.add(member)
        self._endings.put(member)

    def _status(self, index: int) -> int | None:
        report = self._reports.get(index)
        if report is None:
            if self._left_at_once(index):
                return ExitStatus.PREEMPTED
            return ExitStatus.FAILURE if index in self._cleared or self._is_lost(index) else None
        if report.problem is not None:
            return report.problem.status
        if not report.ends:
            return ExitStatus.PREEMPTED
        return outcome(report.ends, asked=self._asked.get(index)).status

    def _left_at_once(self, index: int) -> bool:
        """Return whether a machine was asked while its node was still starting, and ended without a report."""
        return index in self._asked and self._client_status(index) in _LEFT_EARLY

    def _client_status(self, index: int) -> int | None:
        """Return the exit status of a machine's client, or the status that pdsh reported for a lost machine."""
        return self._noticed[index][1] if index in self._noticed else self._clients[index].status

    def _is_lost(self, index: int) -> bool:
        if index in self._noticed and time.monotonic() - self._noticed[index][0] > _LATE_REPORT_SECONDS:
            return True
        return self._clients[index].status is not None and index not in self._reports

    def _take(self, client: Client, line: str, is_error: bool) -> None:
        """Take a line that a client printed; called in the threads that read the output of clients."""
        index, text = client.hosts[0] if len(client.hosts) == 1 else None, line
        if client.names_lines:
            lost = _PDSH_LOST.match(line) if is_error else None
            if lost is not None:
                if (named := self._by_name.get(lost["host"])) is not None:
                    self._noticed[named] = (time.monotonic(), int(lost["code"]))
                return
            name, colon, rest = line.partition(": ")
            if not colon and name.endswith(":"):
                name = name[:-1]
            if (named := self._by_name.get(name)) is not None:
                index, text = named, rest
        if not is_error and (report := NodeReport.from_line(text, run_id=self._plan.run_id)) is not None:
            if report.index in self._lines:
                self._reports[report.index] = report
            return
        if index is not None:
            self._lines[index].append(text)
            if not is_error:
                self._at_work.add(index)
            if is_error:
                self._errors[index].append(text)
        shown = line if client.names_lines or index is None else f"{_short(self._plan.hosts[index])}: {line}"
        self._output.show(shown, is_error=is_error)

    def _outcome(self, supervisor: Supervisor) -> Outcome:
        if self._output.is_closed:
            return Outcome(status=OUTPUT_CLOSED)
        ends: list[ProcessEnd] = []
        losses: list[HostLoss] = []
        for host in self._plan.hosts:
            noticed = supervisor.ended.get(host.index, float("inf"))
            report = self._reports.get(host.index)
            if report is not None:
                ends += self._corrected(report, host)
                if report.problem is not None:
                    losses.append(
                        HostLoss(
                            host=_short(host),
                            ranks=tuple(host.ranks),
                            why=report.problem.message,
                            time=noticed,
                            report=self._at_own_time(report.problem, host),
                        )
                    )
            elif host.index in self._ending:
                ends += [
                    ProcessEnd(rank=rank, exit_code=-signal.SIGKILL, stopped=True, host=_short(host))
                    for rank in host.ranks
                ]
            elif not self._left_at_once(host.index):
                losses.append(self._loss(host, noticed))
        return outcome(ends, losses, asked=supervisor.asked, forced=supervisor.forced)

    def _corrected(self, report: NodeReport, host: HostPlan) -> Iterator[ProcessEnd]:
        """Yield the ends of a machine's processes, with times by the clock of the runner's machine."""
        offset = self._offsets.get(host.index, 0.0)
        for end in report.ends:
            said = None if end.report is None else self._at_own_time(end.report, host)
            stopped = end.stopped or (host.index in self._ending and end.ended_by is not None)
            yield dataclasses.replace(end, host=_short(host), report=said, time=end.time - offset, stopped=stopped)

    def _at_own_time(self, report: Report, host: HostPlan) -> Report:
        return dataclasses.replace(report, time=report.time - self._offsets.get(host.index, 0.0))

    def _loss(self, host: HostPlan, noticed: float) -> HostLoss:
        status = self._client_status(host.index)
        said = list(self._errors[host.index])
        if host.index in self._at_work:  # other lines may come from its processes
            said = [line for line in said if _CONNECTION.search(line)]
        return HostLoss(
            host=_short(host),
            ranks=tuple(host.ranks),
            why=self._explain(said, ExitStatus.FAILURE if status is None else status, host),
            time=noticed,
            last_lines=tuple(self._lines[host.index])[-_SHOWN_LINES:],
        )

    def _ask_all(self, members: Sequence[int]) -> None:
        """Ask machines to leave through separate clients; repeat this where the node has not started yet."""
        pending, deadline = list(members), time.monotonic() + _ASK_SECONDS
        while pending:
            said: list[str] = []
            reached: set[int] = set()
            for number in sorted({self._asked[member] for member in pending}):
                only = [member for member in pending if self._asked[member] is number]
                reached |= self._reach(Verb.ASK, only, signal_word=number.name.removeprefix("SIG"), said=said)
            pending = [member for member in pending if member not in reached and self._status(member) is None]
            if pending and time.monotonic() > deadline:
                for line in said:
                    self._output.show(line, is_error=True)
                return
            if pending:
                time.sleep(_ASK_AGAIN_SECONDS)

    def _end_all(self, members: Sequence[int]) -> None:
        """End machines: by a message where they read one, then by killing whatever is left of the run on them."""
        if self._transport.stdin_follows:
            for member in members:
                self._clients[member].send({"end": True})
            deadline = time.monotonic() + _END_SECONDS
            while any(self._status(member) is None for member in members) and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS)
            self._kill_clients(members)
        self._reach(Verb.CLEAR, [member for member in members if member not in self._reports])
        self._kill_clients(members)
        self._cleared.update(members)

    def _kill_clients(self, members: Sequence[int]) -> None:
        for member in members:
            process = self._clients[member]
            if all(index in self._ending or self._status(index) is not None for index in process.client.hosts):
                process.close()
                process.kill()

    def _reach(
        self, verb: Verb, only: Sequence[int], *, signal_word: str | None = None, said: list[str] | None = None
    ) -> set[int]:
        """Run the clients of another verb; return the machines that have carried it out. Errors are added to `said`."""
        if not only:
            return set()
        clients = self._transport.clients(
            self._plan, verb, order_file=self._order_file, signal=signal_word, only=sorted(only)
        )

        def take(client: Client, line: str, is_error: bool) -> None:
            if is_error and line and said is not None:
                name = "" if client.names_lines else f"{_short(self._plan.hosts[client.hosts[0]])}: "
                said.append(f"{name}{line}")

        statuses = run_clients(clients, seconds=CLEAR_SECONDS, on_line=take)
        return {
            index for client, status in zip(clients, statuses, strict=True) if status == 0 for index in client.hosts
        }

    def _close(self, started: Sequence[ClientProcess]) -> None:
        for index in self._clients:
            if index not in self._reports:
                if self._is_lost(index) and index not in self._ending:
                    self._endings.put(index)  # its processes may be alive although the node that watched them is not
                else:
                    self.kill(index)
        self._requests.finish(seconds=CLEAR_SECONDS)
        self._endings.finish(seconds=_END_SECONDS + CLEAR_SECONDS + 1.0)
        for process in started:
            process.close()
        deadline = time.monotonic() + _END_SECONDS
        while any(process.status is None for process in started) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS / 2)
        for process in started:
            process.kill()
        for process in started:
            process.finish()


def clear(plan: LaunchPlan, transport: Transport) -> None:
    """Kill whatever is left of a run on all machines that can be reached."""
    run_clients(transport.clients(plan, Verb.CLEAR), seconds=CLEAR_SECONDS)


def names_of(plan: LaunchPlan) -> dict[str, int]:
    """Return the number of each machine by the names that pdsh may print for it: with or without the domain."""
    names: dict[str, int] = {}
    for host in plan.hosts:
        whole = _short(host)
        short = whole.partition(".")[0]
        if not short.isdigit():  # it is part of an address
            names.setdefault(short, host.index)
    return {**names, **{_short(host): host.index for host in plan.hosts}}


def _short(host: HostPlan) -> str:
    """Return a machine's name without the user's."""
    return host.name.rpartition("@")[2]
