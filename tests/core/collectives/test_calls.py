"""What a call of a collective is about, and when one that was started is done."""

from __future__ import annotations

import inspect
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist

from scaling.core.collectives import ops
from scaling.core.collectives.calls import CollectiveCall, collective_call, is_deferred, when_done
from scaling.core.collectives.shared_memory import CallQueue


class Work(dist.Work):
    """Communication that a test ends; gloo's reduce-scatter has no future."""

    def __init__(self, *, has_future: bool) -> None:
        super().__init__()
        self.future: torch.futures.Future[None] | None = torch.futures.Future() if has_future else None

    def get_future(self) -> Any:
        """Return the future."""
        if self.future is None:
            raise RuntimeError("Work::getFuture not implemented.")
        return self.future

    def wait(self, timeout: Any = None) -> bool:
        """Return at once."""
        return True


def test_several_works_are_done_when_the_last_one_is() -> None:
    first, second = (Work(has_future=True) for _ in range(2))
    then = mock.Mock()
    pending = ops.Several([first, None, second])
    assert when_done(pending, then) is pending
    assert first.future is not None
    assert second.future is not None
    second.future.set_result(None)
    then.assert_not_called()
    first.future.set_result(None)
    then.assert_called_once_with()


def test_work_that_does_not_tell_is_done_when_the_wait_for_it_is_over() -> None:
    then = mock.Mock()
    waited = when_done(Work(has_future=False), then)
    then.assert_not_called()
    waited.wait()
    then.assert_called_once_with()


def test_a_call_that_runs_when_it_is_waited_for_has_not_started() -> None:
    assert is_deferred(CallQueue().defer(lambda: None))
    assert is_deferred(None)
    assert not is_deferred(Work(has_future=True))


GROUP: Any = mock.Mock(size=lambda: 4)
X = torch.zeros(4, dtype=torch.float32)


@pytest.mark.parametrize(
    ("function", "arguments", "keywords", "expected"),
    [
        (ops.all_reduce, (X, GROUP), {"maximum": True}, ("all_reduce", 16, False)),
        (ops.all_reduce_start, (X, GROUP), {}, ("all_reduce", 16, True)),
        (ops.reduce_scatter, (X[:1], X, GROUP), {}, ("reduce_scatter", 16, False)),
        (ops.all_gather_start, (X, X[:1], GROUP), {}, ("all_gather", 16, True)),
        (ops.broadcast, (X, GROUP), {"source": 0}, ("broadcast", 16, False)),
        (ops.gather, (X, GROUP), {"to": 0}, ("gather", 64, False)),
    ],
)
def test_a_call_has_its_effect_and_the_bytes_of_the_whole(
    function: Any, arguments: tuple[Any, ...], keywords: dict[str, Any], expected: tuple[str, int, bool]
) -> None:
    plain = inspect.unwrap(function)
    effect, size, starts = expected
    assert collective_call(plain, arguments, keywords) == CollectiveCall(effect, GROUP, size, starts, exchanges=False)
    assert collective_call(plain, tuple(None if one is GROUP else one for one in arguments), keywords) is None
