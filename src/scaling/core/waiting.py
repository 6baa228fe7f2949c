"""Marks: functions that wait for other ranks say so, where another thread can read it without looking at frames."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import wraps
from typing import ClassVar, ParamSpec, TypeVar, final

P = ParamSpec("P")
T = TypeVar("T")


class Wait:
    """One call of a function that waits. Another call is another object, so two waits in a row are not one."""

    __slots__ = ()
    votes: ClassVar[bool] = False
    """Whether what it waits for may take as long as reading and writing a checkpoint does."""


@final
class Vote(Wait):
    """One call of a function that waits while others may have much to read or write."""

    __slots__ = ()
    votes: ClassVar[bool] = True


@final
class Marks:
    """What one thread waits in. The thread alone writes it; any other may read it, in one go."""

    __slots__ = ("innermost",)

    def __init__(self) -> None:
        self.innermost: Wait | None = None
        """The innermost call that waits; None: the thread does something else."""


class _OfThread(threading.local):
    def __init__(self) -> None:
        self.marks = Marks()


_own = _OfThread()


def marks_of_this_thread() -> Marks:
    """Return the marks of the thread that calls, for another one to read."""
    return _own.marks


def waits(function: Callable[P, T]) -> Callable[P, T]:
    """Mark a function that waits for other ranks, all the time that it runs. It costs less than a microsecond."""
    return _marked(function, Wait)


def votes(function: Callable[P, T]) -> Callable[P, T]:
    """Mark a function that waits while others may have much to read or write."""
    return _marked(function, Vote)


def _marked(function: Callable[P, T], kind: type[Wait]) -> Callable[P, T]:
    # No context manager: a signal handler may raise wherever Python enters a function, and where that were the one that
    # takes the mark off, the thread would seem to wait for ever. Here it is one store in `finally`, without a call.
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
