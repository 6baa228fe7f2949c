"""Collectives that somebody can look at: whoever times them sees each call, and makes it."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar, final

from torch.compiler import is_dynamo_compiling

P = ParamSpec("P")
T = TypeVar("T")

Observer = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
"""Makes a call of a collective, given its arguments, and returns what that does."""


@final
class Observation:
    """Who sees the calls of collectives, in every thread."""

    __slots__ = ("by",)

    def __init__(self) -> None:
        self.by: Observer | None = None
        """None: nobody."""


observation = Observation()
"""Of this process. A profiler enters itself while it records."""


def observed(function: Callable[P, T]) -> Callable[P, T]:
    """Let an observer see the calls of a function. While there is none, a call costs some tens of nanoseconds more."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        # Compiled code must not depend on whether somebody looks: it would be compiled again for a profiler.
        if is_dynamo_compiling() or (observer := observation.by) is None:
            return function(*args, **kwargs)
        seen: T = observer(function, args, kwargs)
        return seen

    return call
