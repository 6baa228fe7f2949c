"""Observe every collective of a process, and record it under the name of its group."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from threading import local
from typing import Any, final

from scaling.core.collectives.calls import CollectiveCall, collective_call, is_deferred, when_done
from scaling.core.collectives.observed import observation
from scaling.core.profiler.profiler import Profiler, size_in_words
from scaling.core.topology.topology import Topology


class _OfThread(local):
    exchanges = 0
    """Number of calls so far that went through shared memory, which are recorded there."""


@final
class CollectiveObserver:
    """A recorder of collectives: blocking ones in the rank's own row, asynchronous ones beside it."""

    def __init__(self, profiler: Profiler, topology: Topology) -> None:
        self._profiler, self._topology = profiler, topology
        self._groups: dict[Any, tuple[str, list[int]]] = {}
        self._thread = _OfThread()

    def open(self) -> None:
        """Start to record all calls."""
        observation.by = self._call

    def close(self) -> None:
        """Stop recording."""
        if observation.by == self._call:
            observation.by = None

    def _call(self, function: Callable[..., Any], arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        call = collective_call(function, arguments, keywords)
        if call is None:
            return function(*arguments, **keywords)
        profiler, exchanges = self._profiler, self._thread.exchanges
        name, known = self._described(call)
        known = {**profiler.common, **known}  # as of now: an asynchronous call may end in another step
        begin = profiler.now()
        returned = function(*arguments, **keywords)
        if call.starts:
            if is_deferred(returned):
                return returned
            return when_done(
                returned,
                lambda: profiler.add(name, "collective", begin, profiler.now(), arguments=known, under_way=True),
            )
        if call.exchanges or exchanges == self._thread.exchanges:
            profiler.add(name, "collective", begin, profiler.now(), arguments=known)
        self._thread.exchanges += call.exchanges
        return returned

    def _described(self, call: CollectiveCall) -> tuple[str, Mapping[str, Any]]:
        if call.group not in self._groups:
            group, ranks = self._topology.named(call.group)
            self._groups[call.group] = group, list(ranks)
        group, ranks = self._groups[call.group]
        name = f"{call.effect} {group} {size_in_words(call.size)}"
        return name, {"operation": call.effect, "group": group, "ranks": ranks, "bytes": call.size}
