"""Whoever looks at collectives sees each call, in every thread, and compiled code stays as it is."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch

from scaling.core.collectives.observed import observation, observed
from scaling.core.waiting import marks_of_this_thread, waits


@waits
@observed
def double(x: Any, *, times: int = 1) -> Any:
    return x * 2**times


def test_an_observer_sees_every_call_in_every_thread_and_its_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def observe(function: Callable[..., Any], arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        seen.append((function.__name__, arguments, keywords, marks_of_this_thread().innermost is not None))
        return function(*arguments, **keywords)

    assert double(1) == 2
    monkeypatch.setattr(observation, "by", observe)
    assert double(1, times=3) == 8
    thread = threading.Thread(target=double, args=(5,))
    thread.start()
    thread.join()
    assert seen == [("double", (1,), {"times": 3}, True), ("double", (5,), {}, True)]
    monkeypatch.setattr(observation, "by", None)
    assert double(1) == 2
    assert len(seen) == 2


@pytest.mark.slow
def test_compiled_code_is_not_compiled_again_for_an_observer(monkeypatch: pytest.MonkeyPatch) -> None:
    compilations = []

    def compiler(graph: Any, inputs: Any) -> Any:
        compilations.append(graph)
        return graph.forward

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of what the compiler itself imports
        run = torch.compile(lambda x: double(x.sin()) + 1, backend=compiler)
        run(torch.ones(3))
        monkeypatch.setattr(observation, "by", lambda function, arguments, keywords: function(*arguments, **keywords))
        run(torch.ones(3))
    assert len(compilations) == 1
