"""Marks on functions that wait for other ranks: another thread can read them without inspecting frames."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import wraps
from typing import ClassVar, ParamSpec, TypeVar, final

P = ParamSpec("P")
T = TypeVar("T")


class Wait:
    """One call of a function that waits. Each call is an object of its own, so two waits in a row can be told apart."""

    __slots__ = ()
    votes: ClassVar[bool] = False
    """Whether the wait may take as long as reading or writing a checkpoint."""


@final
class Vote(Wait):
    """One call of a function that waits while other ranks may have much to read or write."""

    __slots__ = ()
    votes: ClassVar[bool] = True


@final
class Marks:
    """The wait that one thread is in. Only that thread writes it; any other may read it, in a single access."""

    __slots__ = ("innermost",)

    def __init__(self) -> None:
        self.innermost: Wait | None = None
        """The innermost call that waits; None while the thread is not waiting."""


class _OfThread(threading.local):
    def __init__(self) -> None:
        self.marks = Marks()


_own = _OfThread()


def marks_of_this_thread() -> Marks:
    """Return the marks of the calling thread, for another thread to read."""
    return _own.marks


def waits(function: Callable[P, T]) -> Callable[P, T]:
    """Mark a function as waiting for other ranks as long as it runs. The mark costs less than a microsecond."""
    return _marked(function, Wait)


def votes(function: Callable[P, T]) -> Callable[P, T]:
    """Mark a function as waiting, as long as it runs, while other ranks may have much to read or write."""
    return _marked(function, Vote)


def _marked(function: Callable[P, T], kind: type[Wait]) -> Callable[P, T]:
    # No context manager: a signal handler may raise wherever Python enters a function. If it raised on entering
    # `__exit__`, the mark would stay and the thread would seem to wait for ever. `finally` needs one store and no call.
    @wraps(function)
    def marked(*args: P.args, **kwargs: P.kwargs) -> T:
        marks = _own.marks
        outer = marks.innermost
        try:
            marks.innermost = kind()
            return function(*args, **kwargs)
        finally:
            marks.innermost = outer

    return marked
