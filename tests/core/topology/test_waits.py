"""Who keeps the others waiting follows from what each rank says about itself."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping

import pytest

from scaling.core.topology.topology import Topology
from scaling.core.topology.waits import Account, account_of, calls_in, is_foreign_wait, judge, stack_of
from scaling.core.waiting import Marks, marks_of_this_thread

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


def test_marks_and_a_stack_tell_waiting_from_working() -> None:
    ready, over = threading.Event(), threading.Event()
    marks = list[Marks]()

    class Store:
        def get(self, key: str) -> bytes:
            marks.append(marks_of_this_thread())
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
        found = account_of(stack_of(thread.ident or 0), marks[0].innermost, step=None, still=2.0)
        assert (found.waits, found.votes, found.place) == (True, False, "topology.py, broadcast")
        mine = account_of(stack_of(threading.get_ident()), marks_of_this_thread().innermost, step=3, still=2.0)
        assert (mine.waits, mine.phase, mine.place) == (False, "the program", "waits.py, stack_of")
    finally:
        over.set()
        thread.join()


DUMP = """Thread 0x00000000000000ab (most recent call first):
  File "/usr/lib/python3.11/threading.py", line 324 in wait
  File "/any/scaling/core/waiting.py", line 68 in marked
  File "/any/scaling/core/data/read_ahead.py", line ??? in __next__
  File "/any/scaling/core/trainer/trainer.py", line 142 in step

Current thread 0x00000000000000cd [any name] (most recent call first):
  File "/any/torch/distributed/distributed_c10d.py", line 3 in barrier
  File "/any/own program.py", line 4 in <module>
  File "/any/scaling/core/trainer/trainer.py", line 142 in fit
  ...
"""


def test_the_calls_of_a_thread_are_read_from_a_dump_of_all() -> None:
    first, second = calls_in(DUMP, 0xAB), calls_in(DUMP, 0xCD)
    assert [call.function for call in first] == ["wait", "__next__", "step"]
    assert [call.function for call in second] == ["barrier", "<module>", "fit"]
    assert calls_in(DUMP, 0xEF) == []
    account = account_of(first, None, step=3, still=0.0)
    assert (account.phase, account.place) == ("step 3, waiting for data", "read_ahead.py, __next__")
    assert [is_foreign_wait(calls) for calls in (first, second, second[1:], [])] == [False, True, False, False]
    assert account_of(second, None, step=None, still=0.0).waits
    assert account_of([], None, step=None, still=0.0).place == "an unknown place"
