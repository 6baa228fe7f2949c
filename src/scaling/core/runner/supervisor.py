"""Supervisor: pass signals on to the processes or machines of a run, and make sure that none outlives the run."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from types import FrameType, TracebackType
from typing import Any, Protocol, final

from typing_extensions import Self

from scaling.core.errors import AskedToLeave, ExitStatus
from scaling.core.logging.live_line import ERASE

POLL_SECONDS = 0.1
GRACE_SECONDS = 5.0
"""How long the others may take to end by themselves once a process has failed. Without it they cannot continue."""
_SECOND_REQUEST_SECONDS = 0.5
"""Signals closer together are one request: a signal that a shell passes on may also have reached the runner
directly."""


class Crew(Protocol):
    """The processes of this machine, or the whole machines, that a supervisor watches. Members have numbers."""

    def ends(self) -> Mapping[int, int | None]:
        """Return the exit code of each member that was started, None while it is not known."""

    def has_ended(self, member: int) -> bool:
        """Return whether a member has ended although its exit code is not known yet."""

    def ask(self, member: int, number: signal.Signals) -> None:
        """Ask a member to leave; `number` is SIGUSR1 or SIGTERM."""

    def kill(self, member: int) -> None:
        """End a member at once, and all that it has started."""


@final
class Processes:
    """A crew of processes of this machine, each of which leads a process group of its own; members are process ids.

    `started` returns the exit code of each, None while nobody has waited for it.
    """

    def __init__(self, started: Callable[[], Mapping[int, int | None]] = dict) -> None:
        self._started = started

    def ends(self) -> Mapping[int, int | None]:
        """Return the exit code of each process, None while nobody has waited for it."""
        return self._started()

    def has_ended(self, member: int) -> bool:
        """Return whether a process has ended, without taking its status from the code that waits for it."""
        if sys.platform == "darwin":  # has no such call
            return False
        try:
            return os.waitid(os.P_PID, member, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:
            return True

    def ask(self, member: int, number: signal.Signals) -> None:
        """Signal the process, not its group: data-loading workers leave with the process they work for."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(member, number)

    def kill(self, member: int) -> None:
        """Kill the process and its group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(member, signal.SIGKILL)


class Supervisor:
    """Context manager that passes SIGTERM, SIGUSR1, SIGHUP and Ctrl-C on to a crew; a second request ends it at once.

    Once a member has failed, the others have `grace` seconds (None: 5) to end by themselves. Call `check` every
    `POLL_SECONDS`. Leaving the context kills all members that are left. Outside the main thread, signals are not
    handled.
    """

    def __init__(self, *, may_save: bool = True, grace: float | None = None) -> None:
        self.crew: Crew = Processes()
        """Set by the code that starts it: a request that came before is passed on to it, too."""
        self._grace = GRACE_SECONDS if grace is None else grace
        self._former: dict[int, Any] = {}
        self._told: set[int] = set()
        self._since = 0.0
        self._deadline: float | None = None
        self._is_interruptible = False
        self._may_save = may_save  # if not, members end as soon as they are asked, and nobody has to be told to wait
        self.asked: signal.Signals | None = None
        """The signal by which the run was asked to leave."""
        self.forced = False
        """Whether it was asked twice."""
        self.ended: dict[int, float] = {}
        """When each member was seen to have ended, in seconds since the epoch."""
        self.killed: set[int] = set()
        """The members killed here."""

    def check(self) -> None:
        """Record which members have ended, pass a request on, and kill members that have exceeded their time."""
        self._note_ends()
        if self.asked is not None:
            self._pass_on(self.asked)
        if self.forced or (self._deadline is not None and time.monotonic() > self._deadline):
            self._kill()

    @contextlib.contextmanager
    def interruption(self) -> Iterator[None]:
        """Let the first signal interrupt the block with `AskedToLeave`: there are no processes yet."""
        self._is_interruptible = True
        try:
            if self.asked is not None:
                raise AskedToLeave(self.asked.name)
            yield
        finally:
            self._is_interruptible = False
        if self.asked is not None:
            raise AskedToLeave(self.asked.name)

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
                self._former[number] = signal.signal(number, self._receive)
            if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup wants it ignored
                self._former[signal.SIGHUP] = signal.signal(signal.SIGHUP, self._receive)
            self._former[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda number, frame: self._note_ends())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for member in self.crew.ends():
            self.crew.kill(member)
        for number, handler in self._former.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.asked is None:
            self.asked, self._since = signal.Signals(number), now
            self._pass_on(self.asked)
            if self._may_save:
                what = "the run stops, and saves if it has begun and has a save_dir"
                _say(f"{self.asked.name}: {what}; a second one ends it at once")
            if self._is_interruptible:
                raise AskedToLeave(self.asked.name)
        elif now - self._since >= _SECOND_REQUEST_SECONDS and not self.forced:
            self.forced = True
            self._kill()
            _say("ended at once")

    def _note_ends(self) -> None:
        for member, code in self.crew.ends().items():
            if member not in self.ended and (code is not None or self.crew.has_ended(member)):
                self.ended[member] = time.time()
            if code not in (None, ExitStatus.DONE, ExitStatus.PREEMPTED) and self._deadline is None:
                self._deadline = time.monotonic() + self._grace

    def _pass_on(self, number: signal.Signals) -> None:
        """Ask the members to leave.

        Ctrl-C and a closed terminal are passed on as SIGTERM: a process that does not handle signals yet then ends
        without a traceback.
        """
        passed_on = signal.SIGUSR1 if number is signal.SIGUSR1 else signal.SIGTERM
        for member in self.crew.ends():
            if member not in self._told and member not in self.ended:
                self._told.add(member)
                self.crew.ask(member, passed_on)

    def _kill(self) -> None:
        for member in self.crew.ends():
            if member not in self.ended and member not in self.killed:
                self.killed.add(member)
                self.crew.kill(member)


def _say(text: str) -> None:
    """Write to standard error past its buffer, which the signal may have interrupted in the middle of a line."""
    with contextlib.suppress(OSError):
        start = f"\r{ERASE}" if os.isatty(2) else "\n"  # over a live line, and the ^C that a terminal echoes
        os.write(2, f"{start}{text}\n".encode())
