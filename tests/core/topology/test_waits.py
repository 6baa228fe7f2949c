"""Who keeps the others waiting follows from what each rank says about itself."""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Mapping

import pytest

from scaling.core.topology.topology import Topology
from scaling.core.topology.waits import Account, account_of, frames_of, judge

PATIENCE = 15.0


def waits(seconds: float, *, votes: bool = False) -> Account:
    return Account(phase="step 7", place="ops.py, all_reduce", still=seconds, waits=True, votes=votes)


def works(still: float, phase: str = "step 8, waiting for data") -> Account:
    return Account(phase=phase, place="read_ahead.py, __next__", still=still)


@pytest.mark.parametrize(
    ("accounts", "pattern"),
    [
        ({0: waits(16), 1: None}, r"^rank 1 did not come within 15 s \(.*\): rank 1 does not react, .*"),
        ({0: waits(16), 1: works(20)}, r"rank 1 is in step 8, waiting for data \(read_ahead.py, __next__\), for 20 s"),
        ({0: waits(16), 1: works(0)}, r"rank 1 is in step 8, waiting for data \(read_ahead.py, __next__\)\. Rank 0"),
        ({0: waits(16), 1: waits(0), 2: works(3), 3: None}, r"^ranks 2-3 did not come .*Ranks 0-1 waited in step 7"),
        (
            {0: waits(16), 1: waits(17)},
            r"^the ranks have waited for each other for 15 s .*rank 0 in step 7 .*rank 1 in",
        ),
        ({0: waits(16, votes=True), 1: None}, r"^rank 1 did not come"),
        ({0: waits(16, votes=True), 1: works(16)}, r"^rank 1 did not come"),
        ({0: waits(1801, votes=True), 1: works(0)}, r"^rank 1 did not come"),
    ],
)
def test_ranks_that_do_not_come_are_named(accounts: Mapping[int, Account | None], pattern: str) -> None:
    message = judge(accounts, PATIENCE)
    assert message is not None
    assert re.search(pattern, message), message


@pytest.mark.parametrize(
    "accounts",
    [
        {0: waits(14), 1: None},
        {0: works(100), 1: works(100)},
        {0: waits(16), 1: waits(3)},  # whom it waits for has come meanwhile
        {0: waits(16, votes=True), 1: works(2)},  # it still writes its part of a checkpoint
        {0: waits(0), 1: waits(0)},  # all were stopped, and go on together
    ],
)
def test_who_has_not_waited_long_enough_is_let_be(accounts: Mapping[int, Account | None]) -> None:
    assert judge(accounts, PATIENCE) is None


def test_a_stack_tells_waiting_from_working() -> None:
    ready, over = threading.Event(), threading.Event()

    class Store:
        def get(self, key: str) -> bytes:
            ready.set()
            over.wait(60)
            return b"1"

    topology = Topology.single()
    topology.rank = 1
    topology._store = Store()  # type: ignore[assignment]
    thread = threading.Thread(target=topology.broadcast, args=("any", 1))
    thread.start()
    try:
        assert ready.wait(60)
        stack = list(frames_of(sys._current_frames()[thread.ident or 0]))
        found = account_of(stack, step=None, still=2.0)
        assert (found.waits, found.votes, found.place) == (True, False, "topology.py, broadcast")
        mine = account_of(list(frames_of(sys._getframe())), step=3, still=2.0)
        assert (mine.waits, mine.phase) == (False, "the program")
    finally:
        over.set()
        thread.join()
