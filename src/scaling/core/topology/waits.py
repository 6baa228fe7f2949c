"""What a rank is doing, from the marks and the call stack of its training thread; which ranks keep others waiting."""

from __future__ import annotations

import faulthandler
import itertools
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from scaling.core.topology.ranks import enumerate_ranks
from scaling.core.waiting import Wait

_CORE: Final = "scaling/core/"
_TORCH: Final = "torch/distributed/"
_MARKS: Final = "scaling/core/waiting.py"
"""The file whose frames surround every marked call, and are left out."""

_THREAD: Final = re.compile(r"(?:Current thread|Thread) 0x([0-9a-f]+) ")
_CALL: Final = re.compile(r'  File "(.*)", line \S+ in (.*)')

_PHASES: Final = (
    ("trainer/trainer.py", "evaluate", "the evaluation after step {step}"),
    ("trainer/trainer.py", "save", "saving step {step}"),
    ("trainer/trainer.py", "resume", "loading a checkpoint"),
    ("trainer/trainer.py", "_wait_for_data", "the beginning of training"),
    ("trainer/trainer.py", "step", "step {step}"),
    ("trainer/trainer.py", "fit", "the training around step {step}"),
    ("training/learner.py", "__init__", "building the model"),
    ("topology/topology.py", "connect", "start-up"),
    ("topology/rendezvous.py", "leave_store", "leaving"),
)
"""The phase that an outer function belongs to; the first entry that is found counts."""

_READING: Final = "data/"
VOTE_SECONDS: Final = 1800.0
"""How long a rank may read or write for a checkpoint while others wait for its vote."""


class Call(NamedTuple):
    """A function that a thread is in."""

    path: str
    function: str


@dataclass(frozen=True, kw_only=True)
class Account:
    """One rank's account of itself."""

    phase: str
    place: str
    """The file and the function that its training thread is in."""
    still: float
    """Seconds for which the thread has not moved from there, not counting those in which the process was stopped."""
    waits: bool = False
    """Whether the thread waits for other ranks."""
    votes: bool = False
    """Whether the wait may take as long as reading or writing a checkpoint."""


def stack_of(thread: int) -> list[Call]:
    """Return the call stack of a thread of this process, innermost call first; empty where it is not known.

    The stack is read from the dump that is made for crashed interpreters, since that creates no frame objects of
    another thread. The dump ends after a hundred calls.
    """
    with tempfile.TemporaryFile() as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return calls_in(file.read().decode(errors="replace"), thread)


def calls_in(dump: str, thread: int) -> list[Call]:
    """Return the calls of a thread in a dump of `faulthandler`, innermost call first."""
    found: list[Call] = []
    is_it = False
    for line in dump.splitlines():
        if head := _THREAD.match(line):
            is_it = int(head[1], 16) == thread
        elif is_it and (call := _CALL.match(line)):
            path = call[1].replace("\\", "/")
            if not path.endswith(_MARKS):
                found.append(Call(path, call[2]))
    return found


def is_foreign_wait(stack: Sequence[Call]) -> bool:
    """Return whether a thread is in a call of torch.distributed that this library has not made."""
    return any(_TORCH in call.path for call in itertools.takewhile(lambda call: _CORE not in call.path, stack))


def account_of(stack: Sequence[Call], wait: Wait | None, *, step: int | None, still: float) -> Account:
    """Return the account of a thread from its call stack and the innermost of its marked calls."""
    own = [call for call in stack if _CORE in call.path]
    phase = next(
        (
            text.format(step=0 if step is None else step)
            for file, function, text in _PHASES
            if any(call.path.endswith(_CORE + file) and call.function == function for call in own)
        ),
        "the program",
    )
    if any(f"{_CORE}{_READING}" in call.path for call in own[:4]):
        phase += ", waiting for data"
    place = next((f"{Path(call.path).name}, {call.function}" for call in [*own, *stack]), "an unknown place")
    waits = wait is not None or is_foreign_wait(stack)
    return Account(phase=phase, place=place, still=still, waits=waits, votes=wait is not None and wait.votes)


def judge(accounts: Mapping[int, Account | None], patience: float) -> str | None:
    """Return a message about which ranks keep the others waiting, and where; None while no rank has waited long enough.

    `accounts` holds the account of every rank, None for a rank that did not answer. It is a hang once a rank has waited
    `patience` seconds for others. The ranks at fault are those that do not answer, or that do something else meanwhile;
    a rank that reads or writes for a checkpoint, and moves, is given longer (`VOTE_SECONDS`). If all ranks wait, they
    wait for each other, which is a hang once the last of them has waited that long. Time in which a process is stopped
    does not count, so ranks that are all stopped and resume together have not waited. Pure.
    """
    waiting = {rank: one for rank, one in accounts.items() if one is not None and one.waits}
    patient = {rank: one for rank, one in waiting.items() if one.still >= patience}
    absent = {rank: one for rank, one in accounts.items() if rank not in waiting}
    if not patient:
        return None
    if not absent:
        if len(patient) < len(waiting):
            return None
        everyone = "; ".join(f"rank {rank} in {_whereabouts(one)}" for rank, one in sorted(waiting.items()))
        return (
            f"the ranks have waited for each other for {patience:g} s (topology.process_group_timeout_seconds): "
            f"{everyone}. They do not ask for the same things in the same order, or messages are lost between them; "
            "start the run again, and look for what the ranks do differently if it comes back"
        )
    if all(one is not None for one in absent.values()):
        limit = max(patience, VOTE_SECONDS)
        stands = all(one is not None and one.still >= patience for one in absent.values())
        if not stands and all(one.votes and one.still < limit for one in patient.values()):
            return None
    culprits = "; ".join(_absence(rank, one) for rank, one in sorted(absent.items()))
    return (
        f"{enumerate_ranks(list(absent))} did not come within {patience:g} s "
        f"(topology.process_group_timeout_seconds): {culprits}. {_waiters(waiting)}. Start the run again; if it comes "
        f"back, look at the machine of {enumerate_ranks(list(absent))}, or raise the setting if that takes so long"
    )


def _absence(rank: int, account: Account | None) -> str:
    if account is None:
        return f"rank {rank} does not react, its process or its machine has stopped"
    stays = f", for {account.still:.0f} s by now" if account.still >= 1 else ""
    return f"rank {rank} is in {_whereabouts(account)}{stays}"


def _waiters(waiting: Mapping[int, Account]) -> str:
    places: dict[str, list[int]] = {}
    for rank, account in sorted(waiting.items()):
        places.setdefault(_whereabouts(account), []).append(rank)
    return "; ".join(
        f"{enumerate_ranks(ranks)} waited in {place}".capitalize()
        if not number
        else f"{enumerate_ranks(ranks)} in {place}"
        for number, (place, ranks) in enumerate(places.items())
    )


def _whereabouts(account: Account) -> str:
    return f"{account.phase} ({account.place})"
