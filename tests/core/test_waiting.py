"""A mark stands as long as the call it is for, in the thread that makes it, whatever happens inside."""

from __future__ import annotations

import inspect
import threading
import timeit
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling.core.waiting import Wait, marks_of_this_thread, votes, waits

Tree = tuple[str, bool, list[Any]]
"""A call: how it is marked, whether it fails, and the calls it makes."""

trees: st.SearchStrategy[Tree] = st.recursive(
    st.tuples(st.sampled_from(["waits", "votes", "plain"]), st.booleans(), st.just([])),
    lambda inner: st.tuples(st.sampled_from(["waits", "votes", "plain"]), st.booleans(), st.lists(inner, max_size=3)),
    max_leaves=12,
)


def plain(function: Callable[[], None]) -> Callable[[], None]:
    return function


def carry_out(tree: Tree, seen: list[Wait]) -> None:
    kind, fails, inner = tree
    marks = marks_of_this_thread()
    outer = marks.innermost

    kinds: dict[str, Callable[[Callable[[], None]], Callable[[], None]]]
    kinds = {"waits": waits, "votes": votes, "plain": plain}

    @kinds[kind]
    def call() -> None:
        own = marks.innermost
        if kind == "plain":
            assert own is outer
        else:
            assert own is not None
            assert own.votes == (kind == "votes")
            assert own not in seen
            seen.append(own)
        for one in inner:
            carry_out(one, seen)
            assert marks.innermost is own
        if fails:
            raise KeyError(kind)

    if fails:
        with pytest.raises(KeyError):
            call()
    else:
        call()
    assert marks.innermost is outer


@given(trees, trees)
def test_a_mark_is_that_of_the_innermost_call_of_its_own_thread(here: Tree, there: Tree) -> None:
    failures: list[BaseException] = []
    found = []

    def run() -> None:
        found.append(marks_of_this_thread())
        try:
            for _ in range(3):
                carry_out(there, [])
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    carry_out(here, [])
    thread.join()
    assert not failures
    assert marks_of_this_thread().innermost is found[0].innermost is None
    assert marks_of_this_thread() is not found[0]


def test_another_thread_reads_what_this_one_waits_in() -> None:
    mine, seen = marks_of_this_thread(), list[Wait | None]()

    @votes
    def wait() -> None:
        thread = threading.Thread(target=lambda: seen.append(mine.innermost))
        thread.start()
        thread.join()

    wait()
    wait()
    first, second = seen
    assert first is not None
    assert second is not None
    assert first is not second
    assert first.votes


def test_a_marked_function_is_called_and_described_like_itself() -> None:
    @waits
    def add(first: int, *, second: int = 2) -> int:
        """Add."""
        return first + second

    assert add(1, second=4) == 5
    assert (add.__name__, add.__doc__, str(inspect.signature(add))[:12]) == ("add", "Add.", "(first: 'int")


def test_a_mark_costs_next_to_nothing() -> None:
    @waits
    def nothing() -> None:
        pass

    assert min(timeit.repeat(nothing, number=1000, repeat=20)) / 1000 < 5e-6  # 0.3 microseconds on a free machine
