"""What a call of a collective is about, for whoever times it: effect, group, bytes, and when it is done."""

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
    """Such as `all_reduce`."""
    group: dist.ProcessGroup
    size: int
    """Bytes of the largest tensor in it: of what is summed, gathered or sent to all."""
    starts: bool
    """Whether the call only starts the collective, and returns what is to be waited for."""
    exchanges: bool
    """Whether it is what goes through shared memory, maybe within another of these calls."""


def collective_call(
    function: Callable[..., Any], arguments: Sequence[Any], keywords: Mapping[str, Any]
) -> CollectiveCall | None:
    """Return what an observed call is about; None where it is over one rank."""
    return _DESCRIPTIONS[function](*arguments, **keywords)


def when_done(pending: ops.Pending, then: Callable[[], None]) -> ops.Pending:
    """Return what is waited for in place of `pending`, having arranged that `then` is called once when it is done.

    That is by torch's own thread where its work tells, else when the wait is over. On a GPU the call comes at once, in
    a stream that waits for the work.
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
    """Calls a function the n-th time that it is called itself, from whatever thread."""

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
    """Communication under way, which says when somebody has waited for it."""

    def __init__(self, pending: ops.Pending, then: Callable[[], None]) -> None:
        self._pending, self._then = pending, then

    @waits
    def wait(self) -> None:
        """Wait until it is done."""
        self._pending.wait()
        self._then()


def is_deferred(pending: object) -> bool:
    """Return whether nothing is under way yet: the call is made when somebody waits, and is seen then."""
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
    """Return the function that stands in the file, without its marks."""
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
"""By what is called."""
