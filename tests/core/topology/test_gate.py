"""Ranks that are asked to leave stop after the same unit of work, wherever each of them is, and none waits for ever."""

from __future__ import annotations

import threading
import time
from random import Random

import pytest

from scaling.core.errors import AskedToLeave
from scaling.core.topology.gate import Gate


def train(gate: Gate, pauses: Random, done: list[int]) -> None:
    """Begin units, after pauses of any length, until the gate is closed."""
    while gate.admits(unit := gate.reserve(1)):
        done.append(unit)
        time.sleep(pauses.random() * 0.002)


@pytest.mark.parametrize("seed", range(5))
def test_all_ranks_stop_after_the_last_unit_that_any_of_them_has_begun(seed: int) -> None:
    gates = [Gate() for _ in range(4)]
    done: list[list[int]] = [[] for _ in gates]
    threads = []
    for number, gate in enumerate(gates):
        gate.shared = True
        threads.append(threading.Thread(target=train, args=(gate, Random(f"{seed} {number}"), done[number])))
        threads[-1].start()
    generator = Random(seed)
    begun = []
    for gate in generator.sample(gates, len(gates)):  # each learns of it at another time
        time.sleep(generator.random() * 0.01)
        begun.append(gate.hold())
    for gate in generator.sample(gates, len(gates)):
        gate.close_after(max(begun))
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert all(units == list(range(1, max(begun) + 1)) for units in done)


def test_a_unit_that_was_begun_is_finished() -> None:
    gate = Gate()
    gate.shared = True
    first = gate.reserve(4)
    assert gate.admits(first)
    assert gate.admits(first + 2)
    assert gate.hold() == 3
    gate.close_after(3)
    assert [gate.admits(first + number) for number in range(4)] == [True, True, True, False]
    with pytest.raises(AskedToLeave):
        gate.pass_through()


def test_a_process_that_works_alone_stops_where_it_is() -> None:
    gate = Gate()
    gate.pass_through()
    gate.asked = "SIGTERM"
    assert gate.admits(1)
    assert not gate.admits(gate.reserve(1))
    with pytest.raises(AskedToLeave, match="SIGTERM"), gate.interruption():
        raise AssertionError("this is not begun")


def test_a_signal_breaks_off_nothing_but_what_an_interruption_covers() -> None:
    gate = Gate()
    seen = [gate.interruptible]
    with gate.interruption():
        seen.append(gate.interruptible)
    assert [*seen, gate.interruptible] == [False, True, False]


def test_an_interruption_waits_for_what_is_to_be_finished() -> None:
    gate = Gate()
    gate.shared = True
    gate.pass_through()
    gate.hold()
    gate.close_after(2)  # another rank has begun one more
    with gate.interruption():
        assert not gate.leaves_now
    gate.pass_through()
    assert gate.leaves_now


def test_a_batch_counts_once_a_rank_has_taken_it_for_done_and_needs_its_data_only_then() -> None:
    gates = [Gate() for _ in range(3)]
    for gate in gates:
        gate.shared = True
        assert gate.reserve_batch(2) == 1
    late, done, ahead = gates
    late.admits(1)
    for gate in (done, ahead):
        gate.admits(1)
        gate.admits(2)
    ahead.accept()
    for last, counts in ((2, False), (3, True)):
        for gate in (late, done):
            gate.hold()
            gate.close_after(last)
            assert gate.leaves_now != counts
    assert late.admits(2)
    late.accept()
    done.accept()
    assert done.leaves_now
    with pytest.raises(AskedToLeave):
        done.pass_through()


def test_a_batch_that_no_rank_has_taken_for_done_does_not_count() -> None:
    gate = Gate()
    gate.shared = True
    assert gate.admits(gate.reserve_batch(1))
    gate.hold()
    gate.close_after(1)
    with pytest.raises(AskedToLeave):
        gate.accept()
    alone = Gate()
    alone.asked = "SIGTERM"
    alone.reserve_batch(1)
    alone.accept()  # what a process has begun alone it has finished


def test_what_is_lost_with_others_that_leave_is_no_failure() -> None:
    gate = Gate()
    gate.shared = True
    with pytest.raises(ZeroDivisionError), gate.interruption():
        raise ZeroDivisionError
    gate.hold()
    with pytest.raises(AskedToLeave), gate.interruption():
        raise RuntimeError("the connection was closed")
