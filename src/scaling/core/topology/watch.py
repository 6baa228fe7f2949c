"""Watch: two threads per rank, through which ranks agree on leaving and find out which rank keeps the others waiting.

While nothing happens, a rank asks the store ten times a second for the number of events, and does nothing else: no
collective, no wait for the device, no message from the training thread, no look at its call stack. There are three
events: a rank was asked to leave; a rank has waited too long and asks what the others are doing; a hang was found.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final, NoReturn, final

import torch.distributed as dist

from scaling.core.errors import AskedToLeave, ExitStatus, HangError
from scaling.core.topology.gate import NUDGE, Gate
from scaling.core.topology.stillness import Stillness, processor_clock
from scaling.core.topology.waits import Account, account_of, is_foreign_wait, judge, stack_of
from scaling.core.waiting import marks_of_this_thread

_PAUSE: Final = 0.1
_ANSWER_SECONDS: Final = 3.0
"""How long a rank may take to answer a question."""
_LINGER_SECONDS: Final = 1.0
"""How long an ending process gives the others to learn why, and its own training thread to end it."""


@final
class Watch:
    """Watch of the thread that creates it, over its own connection to `store`: a blocking `get` locks a connection."""

    def __init__(self, store: dist.Store, *, rank: int, world_size: int, gate: Gate, patience: float) -> None:
        own: dist.Store = store.clone()  # type: ignore[attr-defined]  # all stores have it, undeclared
        self._store = dist.PrefixStore("watch", own)
        self._rank, self._world_size = rank, world_size
        self._gate = gate
        self._patience = patience
        self._thread = threading.get_ident()
        self._is_main = threading.current_thread() is threading.main_thread()
        self.is_ending = False
        """Whether a thread of the watch is about to end this process."""
        self._over = threading.Event()
        self._pause = _PAUSE + world_size / 4000  # thousands of ranks share one store
        self._marks = marks_of_this_thread()
        self._clock = Stillness(
            self._marks, processor_clock(self._thread), patience=patience, is_foreign=self._is_in_foreign_wait
        )
        self._silence = 0.0
        """Seconds since the store last answered, not counting those in which this process was stopped."""
        self._seen = 0
        self._leaving = _Leaving()
        self._asking: int | None = None
        self._next_question = patience
        self._threads = [
            threading.Thread(target=target, name=name, daemon=True)
            for target, name in ((self._exchange, "scaling-watch"), (self._keep_time, "scaling-watch-clock"))
        ]

    def start(self) -> None:
        """Start watching."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop watching. Soon afterwards the store is no longer used."""
        self._over.set()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(_LINGER_SECONDS)

    def let_it_end(self) -> None:
        """Let the watch end this process if it is about to: errors caused by the end of others are consequences."""
        if self.is_ending:
            time.sleep(2 * _LINGER_SECONDS)

    def _keep_time(self) -> None:
        before = time.monotonic()
        while not self._over.wait(self._pause):
            now = time.monotonic()
            passed = min(now - before, 1.0)  # if more time passed, the process was stopped, not waiting
            before = now
            self._silence += passed
            self._clock.look(self._gate.begun, passed)
            if self._clock.waited >= self._patience and self._silence >= self._patience:
                self.is_ending = True  # rank 0, or the launcher, serves the store: without it there is nobody to ask
                found = {0: None, self._rank: self._account()} if self._rank else {}
                lost = "; the store over which the ranks would ask each other does not answer either"
                self._end(HangError((judge(found, self._patience) or "no rank can be asked how it is") + lost))

    def _is_in_foreign_wait(self) -> bool:
        return is_foreign_wait(stack_of(self._thread))

    def _account(self) -> Account:
        wait = self._marks.innermost
        return account_of(stack_of(self._thread), wait, step=self._gate.step, still=self._clock.still)

    def _exchange(self) -> None:
        try:
            while not self._over.wait(self._pause):
                self._look()
        except RuntimeError:  # the store is gone, as the training thread will notice
            return

    def _look(self) -> None:
        """Handle new events, and publish those of this rank."""
        events = self._store.add("events", 0)
        self._silence = 0.0
        while self._seen < events:
            self._seen += 1
            self._answer(self._seen, json.loads(self._store.get(str(self._seen))))
        if self._gate.asked is not None and not self._leaving.is_known:
            self._tell({"kind": "leave"})
        if self._leaving.is_known:
            self._leave()
        if self._asking is None and self._clock.waited >= self._next_question:
            self._asking = self._tell({"kind": "question"})
            self._clock.since_question = 0.0
        elif self._asking is not None:
            self._hear(self._asking)
        elif self._clock.waited < self._patience:
            self._next_question = self._patience

    def _tell(self, event: Mapping[str, Any]) -> int:
        number = self._store.add("events", 1)
        self._store.set(str(number), json.dumps(event))
        return number

    def _answer(self, number: int, event: Mapping[str, Any]) -> None:
        match event["kind"]:
            case "leave" if not self._leaving.is_known:
                self._leaving.is_known = True
                self._store.set(f"begun/{self._rank}", str(self._gate.hold()))
            case "question":
                self._store.set(f"{number}/{self._rank}", json.dumps(asdict(self._account())))
            case "hang":
                self.is_ending = True
                told, deadline = self._store.add("told", 1), time.monotonic() + _LINGER_SECONDS
                while told < event["present"] and time.monotonic() < deadline:
                    time.sleep(_PAUSE / 5)
                    told = self._store.add("told", 0)
                if self._rank == 0:  # which may serve the store
                    time.sleep(_PAUSE)
                self._end(HangError(event["message"]))

    def _leave(self) -> None:
        """Close the gate once all ranks have reported their last unit; interrupt work that need not be finished."""
        leaving = self._leaving
        leaving.seconds += self._pause
        if leaving.last is None:
            found = self._values("begun", range(self._world_size))
            if len(found) == self._world_size:
                leaving.last = max(int(value) for value in found.values())
            elif leaving.seconds > _ANSWER_SECONDS and self._gate.begun == 0:
                leaving.last = 0  # the signal ended another rank before it listened; there is nothing to save
            else:
                return
            self._gate.close_after(leaving.last)
            leaving.seconds = 0.0
        if self._is_main and self._gate.leaves_now and self._gate.interruptible:
            signal.pthread_kill(self._thread, NUDGE)
        if leaving.last == 0 and leaving.seconds > _LINGER_SECONDS:
            self.is_ending = True
            self._end(AskedToLeave(self._gate.asked))

    def _hear(self, question: int) -> None:
        """Judge the answers, once all ranks have answered or the time for it is over."""
        found = self._values(str(question), range(self._world_size))
        if len(found) < self._world_size and self._clock.since_question < _ANSWER_SECONDS:
            return
        accounts = {
            rank: Account(**json.loads(found[rank])) if rank in found else None for rank in range(self._world_size)
        }
        message = judge(accounts, self._patience)
        self._asking = None
        self._next_question = self._clock.waited + max(1.0, self._patience / 4)
        if message is not None:
            self._tell({"kind": "hang", "message": message, "present": len(found)})

    def _values(self, name: str, ranks: Sequence[int]) -> dict[int, bytes]:
        keys = {rank: f"{name}/{rank}" for rank in ranks}
        if self._store.check(list(keys.values())):
            return dict(zip(ranks, self._store.multi_get(list(keys.values())), strict=True))
        return {rank: self._store.get(key) for rank, key in keys.items() if self._store.check([key])}

    def _end(self, error: HangError | AskedToLeave) -> NoReturn:
        """End the process from this thread, since the training thread may be blocked for ever. A hook says why."""
        threading.excepthook(threading.ExceptHookArgs((type(error), error, None, threading.current_thread())))
        os._exit(ExitStatus.HANG if isinstance(error, HangError) else ExitStatus.PREEMPTED)


@final
class _Leaving:
    """The progress of leaving."""

    def __init__(self) -> None:
        self.is_known = False
        self.last: int | None = None
        self.seconds = 0.0
