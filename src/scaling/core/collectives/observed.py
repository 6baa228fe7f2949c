"""Observable collectives: an observer, such as a profiler, receives each call and makes it."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar, final

from torch.compiler import is_dynamo_compiling

P = ParamSpec("P")
T = TypeVar("T")

Observer = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
"""A function that calls a collective, given its arguments, and returns the result."""


@final
class Observation:
    """The observer of the calls of collectives, for all threads."""

    __slots__ = ("by",)

    def __init__(self) -> None:
        self.by: Observer | None = None
        """None: there is no observer."""


observation = Observation()
"""The observation of this process. A profiler registers itself here while it records."""


def observed(function: Callable[P, T]) -> Callable[P, T]:
    """Let an observer see the calls of a function. Without one, a call costs some tens of nanoseconds more."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        # Compiled code must not depend on whether there is an observer: a profiler would cause a recompilation.
        if is_dynamo_compiling() or (observer := observation.by) is None:
            return function(*args, **kwargs)
        seen: T = observer(function, args, kwargs)
        return seen

    return call
