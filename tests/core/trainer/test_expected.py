"""The simulated schedule with durations that were measured."""

from __future__ import annotations

from typing import Any

from scaling.core.pipeline.actions import Backward, Forward, Recv, Send
from scaling.core.pipeline.draw import trace_events
from scaling.core.pipeline.lowering import lower_all
from scaling.core.pipeline.schedules import OneFOneB
from scaling.core.pipeline.simulate import simulate
from scaling.core.profiler.profiler import Span
from scaling.core.trainer.expected import expected_events, measured_duration
from scaling.core.trainer.recording import arrows, numbered

SCHEDULE, RANKS, MICRO_BATCHES = OneFOneB(), 2, 3
LASTS = {"forward": (4.0, 6.0), "backward": (10.0, 8.0)}
"""Of each stage."""


def duration(action: Any) -> float:
    match action:
        case Forward():
            return LASTS["forward"][action.stage]
        case Backward():
            return LASTS["backward"][action.stage]
    return 0.5


def measured(step: int, begin: float) -> list[dict[str, Any]]:
    """Return a step that went exactly as planned, messages included."""
    simulation = simulate(lower_all(SCHEDULE, RANKS, MICRO_BATCHES), duration=duration)
    events = trace_events(simulation, microseconds=1.0, begin=begin, step=step)
    boxes = [event for event in events if event["ph"] == "X"]
    for event in boxes:
        at = event["args"]
        if event["cat"] in ("send", "recv"):
            at["message"] = f"{step} {at['payload']} {at['micro_batch']} {at['source']}"
    return boxes


def test_a_step_that_goes_as_planned_is_expected_as_it_went() -> None:
    events = [*measured(3, 1000.0), *measured(4, 2000.0)]
    expected = expected_events(events, SCHEDULE, ranks=RANKS, micro_batches=MICRO_BATCHES)
    found = [event for event in expected if event["ph"] == "X"]
    assert {event["pid"] for event in expected} == {1}
    assert [(one["name"], one["ts"], one["dur"]) for one in found] == [
        (one["name"], one["ts"], one["dur"]) for one in events
    ]
    identities = [event["id"] for event in expected if event["ph"] == "s"]
    assert len(set(identities)) == len(identities) == 2 * 2 * MICRO_BATCHES


def test_durations_are_means_of_a_stage_and_the_shortest_way_of_a_message() -> None:
    late = [{**event, "dur": event["dur"] + 2.0} for event in measured(4, 2000.0)]
    lasts = measured_duration([*measured(3, 1000.0), *late])
    assert lasts(Forward(0, 1)) == 7.0
    assert lasts(Backward(2, 0)) == 11.0
    assert lasts(Send(0, 0, 1, "activation")) == 0.5
    assert lasts(Recv(0, 5, 6, "activation")) == lasts(Forward(0, 5)) == 0.0


def test_a_step_that_was_left_is_not_expected_and_evaluations_are_no_steps() -> None:
    assert expected_events([], SCHEDULE, ranks=RANKS, micro_batches=MICRO_BATCHES) == ()
    half = measured(3, 0.0)[:5]
    evaluation = [
        {**event, "args": {key: value for key, value in event["args"].items() if key != "step"}}
        for event in measured(4, 100.0)
    ]
    assert expected_events([*half, *evaluation], SCHEDULE, ranks=RANKS, micro_batches=MICRO_BATCHES) == ()


def test_messages_of_one_name_are_counted_alike_on_both_ends() -> None:
    at = {"micro_batch": 0, "source": 0, "target": 1, "payload": "activation"}
    sends, receives = ([Span("x", kind, time, 0.5, at) for time in (1.0, 2.0)] for kind in ("send", "recv"))
    names = [[span.arguments["message"] for span in numbered(spans, column=3)] for spans in (sends, receives)]
    assert names[0] == names[1] == ["3: activation 0:0>1 #1", "3: activation 0:0>1 #2"]
    boxes = [
        {"cat": kind, "tid": row, "ts": at_time, "dur": 0.5, "args": {**at, "message": names[0][0]}}
        for kind, row, at_time in (("send", 0, 1.0), ("recv", 4, 2.0))
    ]
    begin, end = arrows([boxes[0], {"cat": "forward"}, boxes[1]])
    assert begin["id"] == end["id"] == names[0][0]
    assert (begin["ph"], begin["ts"], begin["tid"]) == ("s", 1.0, 0)
    assert (end["ph"], end["ts"], end["tid"], end["name"]) == ("f", 2.5, 4, "activation")
