"""Look at all machines of a run, at the same time, before anything is started on them."""

from __future__ import annotations

import contextlib
import re
import secrets
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from scaling.core.errors import StorageError
from scaling.core.runner.client_process import run_clients
from scaling.core.runner.fleet import names_of
from scaling.core.runner.inspection import Findings, Here, HostProblem, inspect
from scaling.core.runner.look import TOKEN_FILE, HostFacts, sampled_digest, versions
from scaling.core.runner.order_file import order_file
from scaling.core.runner.plan import LaunchPlan, Order
from scaling.core.runner.transports.client import Client, Transport, Verb
from scaling.core.runner.transports.failures import explain

LOOK_SECONDS: Final = 12.0
"""How long all machines together may take to answer."""
_OF_PDSH: Final = re.compile(r"pdsh@[^:]*: (?P<what>.*)")
_ENDED: Final = re.compile(r"(?P<host>[^:]+): \S+ exited with exit code \d+")


def look_everywhere(
    plan: LaunchPlan,
    transport: Transport,
    *,
    config_text: str | None,
    seconds: float = LOOK_SECONDS,
) -> Findings:
    """Ask every machine of the plan for its facts, and judge them. Starts nothing that outlives the call.

    `config_text` is None where each machine reads the configuration from its file.
    """
    answers = _Answers(plan, transport)
    token = secrets.token_hex(16)
    with _tokens(plan, token) as folder_problems, contextlib.ExitStack() as kept:
        order = Order(plan=plan, config_text=config_text)
        try:
            path = kept.enter_context(order_file(order)) if transport.needs_file else None
        except StorageError as error:  # no machine can be asked anything
            return Findings(problems=(HostProblem("here", str(error)),))
        clients = transport.clients(plan, Verb.LOOK, order_file=path)
        asked = time.time()
        statuses = run_clients(clients, seconds=seconds, lines=[order.to_json()], on_line=answers.take)
    for client, status in zip(clients, statuses, strict=True):
        answers.end(client, status, seconds)
    here = Here(
        versions=versions(),
        files={path: sampled_digest(path) for path in plan.needs.files},
        token=token,
        folder_problems=folder_problems,
        asked=asked,
        answered=answers.times,
    )
    return inspect(dict(answers.facts), answers.failures, plan, here)  # a late line may still come


class _Answers:
    """The answers of the machines: facts on standard output, reasons for failures on standard error.

    Any other line on standard output comes from a login shell.
    """

    def __init__(self, plan: LaunchPlan, transport: Transport) -> None:
        self._plan, self._transport = plan, transport
        self._by_name = names_of(plan)
        self._lock = threading.Lock()
        self._errors: dict[int, list[str]] = {host.index: [] for host in plan.hosts}
        self._unnamed: list[str] = []  # by pdsh itself
        self._ended: set[int] = set()  # as reported by pdsh
        self.facts: dict[int, HostFacts] = {}
        self.times: dict[int, float] = {}
        self.failures: dict[int, str] = {}

    def take(self, client: Client, line: str, is_error: bool) -> None:
        index, text = client.hosts[0] if len(client.hosts) == 1 else None, line
        if client.names_lines:
            name, _, rest = line.partition(": ")
            if name in self._by_name:
                index, text = self._by_name[name], rest
        with self._lock:
            if not is_error and (facts := HostFacts.from_line(text, run_id=self._plan.run_id)) is not None:
                self.times.setdefault(facts.index, time.time())
                self.facts[facts.index] = facts
            elif not is_error:
                return
            elif index is not None:
                self._errors[index].append(text)
            else:
                self._take_unnamed(line)

    def _take_unnamed(self, line: str) -> None:
        text = of_pdsh["what"] if (of_pdsh := _OF_PDSH.match(line)) else line
        if (ended := _ENDED.fullmatch(text)) and ended["host"] in self._by_name:
            self._ended.add(self._by_name[ended["host"]])
        else:
            self._unnamed.append(text)

    def end(self, client: Client, status: int | None, seconds: float) -> None:
        """Record, for each machine of a client that has ended or was killed, why the machine has not answered."""
        for index in client.hosts:
            host = self._plan.hosts[index]
            said = self._errors[index] or (self._unnamed if client.names_lines else [])
            if index in self.facts:
                continue
            if status is None and index not in self._ended:
                last = next((line.strip() for line in reversed(self._errors[index]) if line.strip()), None)
                self.failures[index] = (
                    f"it did not answer within {seconds:.0f} s{'' if last is None else f'; it last said: {last}'} "
                    f"(try: {self._transport.by_hand(host)})"
                )
            else:
                self.failures[index] = explain(
                    said, 255 if status is None else status, host=host, transport=self._transport
                )


@contextlib.contextmanager
def _tokens(plan: LaunchPlan, token: str) -> Iterator[Mapping[str, str]]:
    """Leave a file in each folder that must be shared; yield the reasons where that fails, by folder."""
    problems: dict[str, str] = {}
    left: list[Path] = []
    try:
        for folder in {path for _, path in plan.needs.folders}:
            path = Path(folder) / TOKEN_FILE.format(run_id=plan.run_id)
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(token, encoding="utf-8")
                left.append(path)
            except OSError as error:
                problems[folder] = error.strerror or str(error)
        yield problems
    finally:
        for path in left:
            with contextlib.suppress(OSError):
                path.unlink()
