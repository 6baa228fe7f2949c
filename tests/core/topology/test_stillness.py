"""Whether a thread moves follows from its marks, its units of work and its processor time."""

from __future__ import annotations

import sys
import threading
import time

import pytest

from scaling.core.topology.stillness import Stillness, processor_clock
from scaling.core.waiting import Marks, Wait

PATIENCE = 10.0


class Thread:
    """What another thread does, a tenth of a second at a time."""

    def __init__(self) -> None:
        self.marks = Marks()
        self.used = 5.0
        self.begun = 0
        self.is_foreign = False
        self.looks = 0
        self.clock = Stillness(self.marks, lambda: self.used, patience=PATIENCE, is_foreign=self._look)

    def _look(self) -> bool:
        self.looks += 1
        return self.is_foreign

    def live(self, seconds: float, *, share: float = 0.0) -> tuple[float, float]:
        for _ in range(round(seconds * 10)):
            self.used += 0.1 * share
            self.clock.look(self.begun, 0.1)
        return round(self.clock.still, 3), round(self.clock.waited, 3)


@pytest.fixture
def thread() -> Thread:
    thread = Thread()
    thread.live(0.1, share=1.0)
    return thread


@pytest.mark.parametrize(("share", "still"), [(0.0, 5.0), (0.001, 5.0), (0.01, 0.0), (1.0, 0.0)])
def test_who_uses_hardly_any_processor_time_is_still(thread: Thread, share: float, still: float) -> None:
    assert thread.live(5.0, share=share) == (still, 0.0)
    thread.live(0.1, share=0.1)
    assert thread.clock.still == 0.0
    assert thread.looks == 0


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_one_marked_call_is_one_wait_whatever_it_uses(thread: Thread, share: float) -> None:
    outer = thread.marks.innermost = Wait()
    assert thread.live(20.1, share=share) == (20.0, 20.0)
    thread.marks.innermost = Wait()
    assert thread.live(1.1, share=share) == (1.0, 1.0)
    thread.marks.innermost = outer
    assert thread.live(1.1, share=share) == (1.0, 1.0)
    thread.begun += 1
    assert thread.live(1.1, share=share) == (1.0, 1.0)
    thread.marks.innermost = None
    assert thread.live(0.1, share=share) == (0.0, 0.0)
    assert thread.looks == 0


def test_a_call_without_a_mark_is_looked_for_once_nothing_has_moved_for_long(thread: Thread) -> None:
    thread.is_foreign = True
    assert thread.live(9.8) == (9.8, 0.0)
    assert thread.looks == 0
    assert thread.live(5.2) == (15.0, 15.0)
    assert thread.looks == 1
    assert thread.live(0.1, share=0.001) == (15.1, 0.0)  # a moment is enough to leave the call and begin another one
    assert thread.live(9.8)[1] == 0.0


def test_who_slept_before_a_call_without_a_mark_has_not_waited_meanwhile(thread: Thread) -> None:
    assert thread.live(20.0) == (20.0, 0.0)
    assert 4 <= thread.looks <= 5
    thread.is_foreign = True
    assert thread.live(10.0)[1] == pytest.approx(10.0, abs=2.6)


@pytest.mark.skipif(sys.platform == "darwin", reason="a thread's processor time is its own secret there")
def test_the_clock_of_another_thread_stands_while_it_sleeps_and_after_its_end() -> None:
    computes, over = threading.Event(), threading.Event()

    def run() -> None:
        until = time.thread_time() + 0.05
        while time.thread_time() < until:
            pass
        computes.set()
        over.wait(60)

    thread = threading.Thread(target=run)
    thread.start()
    clock = processor_clock(thread.ident or 0)
    assert computes.wait(60)
    time.sleep(0.05)
    before = clock()
    time.sleep(0.2)
    assert 0.05 <= before == clock()
    over.set()
    thread.join()
    assert clock() >= before
