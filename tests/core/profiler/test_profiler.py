"""The profiler's spans: in order, with their durations, also of work that fails."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import torch

from scaling.core import Profiler
from scaling.core.profiler.profiler import size_in_words

CPU = torch.device("cpu")


def test_spans_come_in_order_with_their_durations_and_are_forgotten() -> None:
    profiler = Profiler(CPU)
    with profiler.record("outer", "test"):
        with profiler.record("inner", "test"):
            time.sleep(0.01)
        time.sleep(0.005)
    inner, outer = profiler.spans()
    assert (inner.name, outer.name) == ("inner", "outer")
    assert inner.duration >= 0.01
    assert outer.duration >= inner.duration + 0.005
    assert outer.start <= inner.start
    assert profiler.spans() == []


def test_a_span_is_recorded_although_its_work_fails() -> None:
    profiler = Profiler(CPU)
    with pytest.raises(ValueError, match=r"^$"), profiler.record("broken", "test"):
        raise ValueError
    (span,) = profiler.spans()
    assert span.name == "broken"
    assert span.end == span.start + span.duration


def test_a_span_has_what_is_known_of_it_and_of_everything_at_that_time() -> None:
    profiler = Profiler(CPU)
    profiler.common = {"step": 3}
    with profiler.record("one", "test", micro_batch=1):
        pass
    profiler.add("two", "test", 1.0, 3.0, arguments={"step": 2}, under_way=True)
    one, two = profiler.spans()
    assert one.arguments == {"step": 3, "micro_batch": 1}
    assert (two.arguments, two.start, two.duration, two.under_way) == ({"step": 2}, 1.0, 2.0, True)


def test_times_of_a_gpu_are_those_of_the_host_at_both_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU whose clock goes slower by a tenth: its marks are told from the host's times around it."""
    host = iter([100.0, 100.002, 110.0, 110.002])

    class Event:
        def __init__(self, *, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.milliseconds = next(device)

        def elapsed_time(self, other: Event) -> float:
            return other.milliseconds - self.milliseconds

    device: Iterator[float] = iter([50.0, 50.0 + 1800.0, 50.0 + 2700.0, 50.0 + 9000.0])
    waits: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", waits.append)
    profiler = Profiler(torch.device("cuda", 0), now=lambda: next(host))
    assert len(waits) == 2
    with profiler.record("work", "test"):
        pass
    assert len(waits) == 2  # nothing was waited for while it recorded
    (span,) = profiler.spans()
    assert span.start == pytest.approx(100.001 + 2.0)
    assert span.duration == pytest.approx(1.0)
    assert profiler.uncertainty == pytest.approx(0.001)


@pytest.mark.parametrize(
    ("size", "words"), [(0, "0 B"), (512, "512 B"), (1536, "1.5 KiB"), (2**22, "4 MiB"), (2**32, "4 GiB")]
)
def test_sizes_are_given_in_words(size: int, words: str) -> None:
    assert size_in_words(size) == words
