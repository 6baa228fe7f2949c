"""Spans of a profile as rows, their shares of the time, and what is left out."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling.core.report.timeline import (
    MAX_SPANS,
    MEASURED,
    SIMULATED,
    Process,
    Row,
    Span,
    draw_timeline,
    idle,
    read_processes,
    shares,
)
from tests.core.report.folders import profile

KINDS = st.sampled_from(["forward", "backward", "recv", "collective", "optimizer", "data", "checkpoint", "unknown"])
SPANS = st.lists(st.tuples(KINDS, st.integers(0, 90), st.integers(0, 10)), max_size=30)


@given(spans=SPANS)
def test_shares_are_those_of_a_count_of_single_moments(spans: list[tuple[str, int, int]]) -> None:
    row = Row("rank 0", [Span(kind, kind, start, start + length) for kind, start, length in spans])
    found = shares(row, 0, 100)
    under_way = [{kind for kind, start, length in spans if start <= now < start + length} for now in range(100)]
    compute = {"forward", "backward"}
    assert found["computing"] == pytest.approx(sum(bool(kinds & compute) for kinds in under_way) / 100)
    waits = {"recv", "collective"}
    expected = sum(bool(kinds & waits) and not kinds & {*compute, "optimizer"} for kinds in under_way) / 100
    assert found["sending, receiving, collectives"] == pytest.approx(expected)
    assert sum(found.values()) == pytest.approx(1.0)
    assert min(found.values()) >= 0


def test_measured_and_simulated_rows_are_drawn_with_their_idle_time() -> None:
    trace = profile(
        [(0, 0, "forward", 0, 10), (0, 1, "backward", 10, 30), (1, 0, "forward", 0, 1), (1, 1, "forward", 0, 1)]
    )
    page = draw_timeline(trace)
    assert page is not None
    assert page.index("Measured") < page.index("Simulated")
    assert page.count("<rect") == 4
    assert re.findall(r"optimizer: ([0-9.]+%)", page) == ["50.0%", "0.0%"]
    assert "agree to 0.12 ms" in page


def test_time_between_two_simulated_steps_is_not_idle_and_that_between_measured_ones_is() -> None:
    trace = profile([(pid, 0, "forward", start, 10) for pid in (MEASURED, SIMULATED) for start in (0, 90)])
    for event in trace["traceEvents"]:
        event["args"] = {**event.get("args", {}), "step": event.get("ts")}
    found = read_processes(trace)
    assert idle(found[MEASURED]) == pytest.approx(0.8)
    assert idle(found[SIMULATED]) == 0.0
    waiting = read_processes(profile([(0, 0, "recv", 0, 10)]))
    assert idle(waiting[MEASURED]) is None


def test_rows_follow_the_order_of_ranks() -> None:
    trace = profile([(0, rank, "forward", 0, 1) for rank in (10, 2, 0, 1)])
    assert [row.name for row in read_processes(trace)[MEASURED].rows] == ["rank 0", "rank 1", "rank 2", "rank 10"]
    last = {"ph": "M", "name": "thread_sort_index", "pid": 0, "tid": 1, "args": {"sort_index": 99}}
    trace["traceEvents"].append(last)
    assert [row.name for row in read_processes(trace)[MEASURED].rows] == ["rank 0", "rank 2", "rank 10", "rank 1"]


def test_a_row_is_called_by_its_rank_and_by_what_else_it_is() -> None:
    named = {
        "rank 3 pipe 1 data 1 context 0 model 0": "rank 3",
        "rank 0 Coordinate(pipe=0, data=0)": "rank 0",
        "rank 3 communication 2": "rank 3 communication 2",
        "pipe rank 1": "pipe rank 1",
        "other": "other",
    }
    for name, shown in named.items():
        trace = profile([(0, 0, "forward", 0, 1)])
        trace["traceEvents"][0]["args"]["name"] = name
        page = draw_timeline(trace)
        assert page is not None
        assert f'<span title="{name}">{shown}</span>' in page


def test_what_is_not_drawn_is_said() -> None:
    trace = profile([(0, rank, "forward", 10.0 * n, 5.0) for rank in range(2) for n in range(MAX_SPANS)])
    page = draw_timeline(trace)
    assert page is not None
    assert page.count("<rect") == MAX_SPANS
    assert "The first 15 of 30 ms: 3,000 of 6,000 bars." in page
    page = draw_timeline(profile([(0, rank, "forward", 0, 1) for rank in range(70)]))
    assert page is not None
    assert "6 further rows are left out." in page


def test_the_ends_of_a_long_profile_are_looked_for_a_few_times_only(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = []
    end = vars(Process)["end"].fget

    def seen(process: Process) -> float:
        looked.append(process)
        return float(end(process))

    monkeypatch.setattr(Process, "end", property(seen))
    assert draw_timeline(profile([(MEASURED, 0, "forward", start, 1) for start in range(MAX_SPANS + 500)]))
    assert len(looked) < 10


@pytest.mark.parametrize(
    "trace",
    [
        {},
        {"traceEvents": None},
        {"traceEvents": [3, {"pid": 0, "ph": "X"}, {"pid": 0, "ph": "X", "ts": "a", "dur": 1}, {"pid": 5, "ph": "X"}]},
        {"traceEvents": [{"pid": 1000, "ph": "X", "ts": 0, "dur": 1, "name": "aten::mm", "cat": "cpu_op"}]},
        {"traceEvents": [{"pid": 0, "ph": "X", "ts": float("nan"), "dur": float("nan")}]},
    ],
)
def test_a_profile_without_spans_of_ours_has_no_timeline(trace: dict[str, object]) -> None:
    assert draw_timeline(trace) is None


def test_spans_of_no_length_are_drawn() -> None:
    page = draw_timeline(profile([(SIMULATED, 0, "forward", 5, 0)]))
    assert page is not None
    assert page.count("<rect") == 1
