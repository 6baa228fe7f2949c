"""The profiler's spans: in order, with their durations, also of work that fails."""

from __future__ import annotations

import time

import torch

from scaling.core import Profiler


def test_spans_come_in_order_with_their_durations_and_are_forgotten() -> None:
    profiler = Profiler(torch.device("cpu"))
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
    profiler = Profiler(torch.device("cpu"))
    try:
        with profiler.record("broken", "test"):
            raise ValueError
    except ValueError:
        pass
    (span,) = profiler.spans()
    event = span.trace_event(process=3)
    assert event["name"] == "broken"
    assert event["tid"] == 3
    assert event["ph"] == "X"
