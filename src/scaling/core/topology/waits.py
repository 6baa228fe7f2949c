"""What a rank is doing, read from the stack of its training thread, and which ranks keep the others waiting."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final

from scaling.core.topology.ranks import enumerate_ranks

_CORE: Final = "scaling/core/"
_TORCH: Final = "torch/distributed/"

_COLLECTIVES: Final[Mapping[str, tuple[str, ...]]] = {
    "collectives/ops.py": (),
    "optimizer/grad_sync.py": ("finish", "gather_weights"),
    "pipeline/engine.py": ("_receive_gradient",),
    "pipeline/link.py": ("wait", "receive"),
    "topology/gate.py": ("admits",),
    "topology/topology.py": ("gather", "broadcast", "subgroup", "connect"),
    "topology/rendezvous.py": ("leave_store",),
    "trainer/trainer.py": ("_synchronise",),
}
"""Functions that wait for other ranks, by file; no names: all of a file."""

_VOTES: Final[Mapping[str, tuple[str, ...]]] = {"checkpoint/communicator.py": ("_take",)}
"""Functions that wait while others may have much to read or write."""

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
"""What an outer function stands for; the first one that is found counts."""

_READING: Final = "data/"
VOTE_SECONDS: Final = 1800.0
"""How long a rank may read or write for a checkpoint while others wait for its word."""


@dataclass(frozen=True, kw_only=True)
class Account:
    """What one rank says about itself."""

    phase: str
    place: str
    """The file and the function that its training thread is in."""
    still: float
    """Seconds for which it has not moved from there, not counting those in which the process was stopped."""
    waits: bool = False
    """Whether it waits for other ranks."""
    votes: bool = False
    """Whether what it waits for may take as long as reading and writing a checkpoint does."""


def frames_of(innermost: FrameType | None) -> Iterator[FrameType]:
    """Yield the frames of a stack from the innermost on."""
    while innermost is not None:
        yield innermost
        innermost = innermost.f_back


def waiting_frame(stack: Sequence[FrameType]) -> FrameType | None:
    """Return the frame that waits for other ranks: it is the innermost of this library, or one of torch's."""
    for frame in stack:
        path = frame.f_code.co_filename.replace("\\", "/")
        if _TORCH in path:
            return frame
        if _CORE in path:
            name = frame.f_code.co_name
            return frame if _is_listed(_COLLECTIVES, path, name) or _is_listed(_VOTES, path, name) else None
    return None


def account_of(stack: Sequence[FrameType], *, step: int | None, still: float) -> Account:
    """Describe a stack."""
    own = [frame for frame in stack if _CORE in frame.f_code.co_filename]
    calls = [(frame.f_code.co_filename.replace("\\", "/"), frame.f_code.co_name) for frame in own]
    phase = next(
        (
            text.format(step=0 if step is None else step)
            for file, function, text in _PHASES
            if any(path.endswith(_CORE + file) and name == function for path, name in calls)
        ),
        "the program",
    )
    if any(f"{_CORE}{_READING}" in path for path, _ in calls[:4]):
        phase += ", waiting for data"
    innermost = (own or stack)[0].f_code
    waits = waiting_frame(stack)
    votes = waits is not None and any(_is_listed(_VOTES, path, name) for path, name in calls[:1])
    place = f"{Path(innermost.co_filename).name}, {innermost.co_name}"
    return Account(phase=phase, place=place, still=still, waits=waits is not None, votes=votes)


def judge(accounts: Mapping[int, Account | None], patience: float) -> str | None:
    """Return who keeps the others waiting and where these are; None while nobody has waited for long enough. Pure.

    `accounts` has every rank's own, None for one that did not answer. A rank that has waited `patience` seconds for
    others makes a hang of it: those are ranks that do not answer, or ranks that do something else meanwhile; a rank
    that reads or writes for a checkpoint, and moves, is let be for longer. Where all ranks wait they wait for each
    other, once the last one has waited that long. Times do not count while a process is stopped, so ranks that are
    all stopped and go on together have not waited.
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


def _is_listed(functions: Mapping[str, tuple[str, ...]], path: str, name: str) -> bool:
    names = next((names for file, names in functions.items() if path.endswith(_CORE + file)), None)
    return names is not None and (not names or name in names)
