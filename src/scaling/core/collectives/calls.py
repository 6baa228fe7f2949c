"""Descriptions of calls of collectives, for a profiler that times them: effect, group, bytes, and when each is done."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import Any, Final, final

import torch.distributed as dist
from torch import Tensor

from scaling.core.collectives import exchanges, ops
from scaling.core.collectives.shared_memory import DeferredCall
from scaling.core.waiting import waits


@final
@dataclass(frozen=True)
class CollectiveCall:
    """One call of a collective."""

    effect: str
    """For example `all_reduce`."""
    group: dist.ProcessGroup
    size: int
    """Bytes of the largest tensor in the call: the one that is summed, gathered or broadcast."""
    starts: bool
    """Whether the call only starts the collective and returns an object to wait on."""
    exchanges: bool
    """Whether this is the exchange through shared memory, possibly within another such call."""


def collective_call(
    function: Callable[..., Any], arguments: Sequence[Any], keywords: Mapping[str, Any]
) -> CollectiveCall | None:
    """Return the description of an observed call; None where its group is of one rank."""
    return _DESCRIPTIONS[function](*arguments, **keywords)


def when_done(pending: ops.Pending, then: Callable[[], None]) -> ops.Pending:
    """Arrange that `then` is called once when `pending` is done; return the object to wait on in place of `pending`.

    The call comes from torch's own thread where its works have futures, else at the end of the wait. On a GPU it comes
    at once, in a stream that waits for the work.
    """
    works = pending.works if isinstance(pending, ops.Several) else [pending]
    try:
        futures = [work.get_future() for work in works if isinstance(work, dist.Work)]
    except (RuntimeError, NotImplementedError):  # gloo's reduce-scatter
        futures = []
    if len(futures) != len(works):
        return _Waited(pending, then)
    countdown = _Countdown(len(works), then)
    for future in futures:
        future.add_done_callback(countdown)
    return pending


@final
class _Countdown:
    """A callback that calls a function when it is itself called for the n-th time, from any thread."""

    def __init__(self, count: int, then: Callable[[], None]) -> None:
        self._left, self._then, self._lock = count, then, Lock()

    def __call__(self, future: object) -> None:
        with self._lock:
            self._left -= 1
            if self._left:
                return
        self._then()


@final
class _Waited:
    """Communication under way that calls a function when somebody has waited for it."""

    def __init__(self, pending: ops.Pending, then: Callable[[], None]) -> None:
        self._pending, self._then = pending, then

    @waits
    def wait(self) -> None:
        """Wait until the communication is done, then call the function."""
        self._pending.wait()
        self._then()


def is_deferred(pending: object) -> bool:
    """Return whether nothing is under way yet: the call is made, and observed, when somebody waits."""
    return pending is None or isinstance(pending, DeferredCall)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _of_one(effect: str, tensor: Tensor, group: ops.Group, *, starts: bool = False, **_: Any) -> CollectiveCall | None:
    return None if group is None else CollectiveCall(effect, group, _bytes(tensor), starts, exchanges=False)


def _of_two(
    effect: str, output: Tensor, tensor: Tensor, group: ops.Group, *, starts: bool = False
) -> CollectiveCall | None:
    size = max(_bytes(output), _bytes(tensor))
    return None if group is None else CollectiveCall(effect, group, size, starts, exchanges=False)


def _gathered(tensor: Tensor, group: ops.Group, *, to: int) -> CollectiveCall | None:
    if group is None:
        return None
    return CollectiveCall("gather", group, group.size() * _bytes(tensor), starts=False, exchanges=False)


def _exchanged(effect: str, size: int, handle: int) -> CollectiveCall | None:
    group = next((group for group, one in ops.shared.exchanges.items() if one.handle == handle), None)
    return None if group is None else CollectiveCall(effect, group, size, starts=False, exchanges=True)


def _plain(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function as defined in the file, without its decorators."""
    plain: Callable[..., Any] = inspect.unwrap(function)
    return plain


_DESCRIPTIONS: Final[Mapping[Callable[..., Any], Callable[..., CollectiveCall | None]]] = {
    _plain(ops.all_reduce): partial(_of_one, "all_reduce"),
    _plain(ops.all_reduce_start): partial(_of_one, "all_reduce", starts=True),
    _plain(ops.reduce_scatter): partial(_of_two, "reduce_scatter"),
    _plain(ops.reduce_scatter_start): partial(_of_two, "reduce_scatter", starts=True),
    _plain(ops.all_gather): partial(_of_two, "all_gather"),
    _plain(ops.all_gather_start): partial(_of_two, "all_gather", starts=True),
    _plain(ops.broadcast): partial(_of_one, "broadcast"),
    _plain(ops.gather): _gathered,
    _plain(exchanges._all_reduce): lambda x, handle, maximum: _exchanged("all_reduce", _bytes(x), handle),
    _plain(exchanges._reduce_scatter): lambda output, x, handle: _exchanged("reduce_scatter", _bytes(x), handle),
    _plain(exchanges._all_gather): lambda output, x, handle: _exchanged("all_gather", _bytes(output), handle),
    _plain(exchanges._broadcast): lambda x, handle, source: _exchanged("broadcast", _bytes(x), handle),
}
"""By function called."""
