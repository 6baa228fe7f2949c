"""Drawings of a simulated step."""

from __future__ import annotations

import json
from collections import Counter

from scaling.core.pipeline.actions import Backward, BackwardInput, BackwardWeight, Forward, Send
from scaling.core.pipeline.draw import chrome_trace, draw, label
from scaling.core.pipeline.lowering import lower_all
from scaling.core.pipeline.schedules import ForwardOnly, Interleaved1F1B, OneFOneB
from scaling.core.pipeline.simulate import simulate
from scaling.core.pipeline.stage_map import StageMap

STEP = simulate(lower_all(OneFOneB(), 2, 2))


def test_a_step_is_drawn_with_a_line_per_rank() -> None:
    assert draw(STEP).splitlines() == [
        "rank 0  F0 F1 ......B0=== ...B1===",
        "rank 1  ...F0 B0=== F1 B1=== ......",
    ]


def test_a_long_step_is_folded() -> None:
    assert draw(STEP, width=23).splitlines() == [
        "rank 0  F0 F1 ......B0=",
        "rank 1  ...F0 B0=== F1",
        "",
        "rank 0  == ...B1===",
        "rank 1  B1=== ......",
    ]
    long = simulate(lower_all(Interleaved1F1B(2), 4, 16))
    for drawing, width in ((draw(long, width=60), 60), (draw(long), 120)):
        assert max(len(line) for line in drawing.splitlines()) == width


def test_an_empty_step_is_drawn() -> None:
    nothing = simulate(lower_all(ForwardOnly(), 2, 1), duration=lambda action: 0.0)
    assert nothing.bubble == 0
    assert draw(nothing).splitlines() == []
    waiting = simulate(lower_all(ForwardOnly(), 2, 1), duration=lambda action: float(isinstance(action, Send)))
    assert waiting.makespan == 1
    assert draw(waiting).splitlines() == []


def test_labels_name_the_stage_of_a_rank_with_several() -> None:
    stages = StageMap((0, 1, 1, 0))
    assert label(Forward(3, 0), stages) == "F3"
    assert label(Backward(12, 3), stages) == "B12.1"
    assert label(BackwardInput(0, 1), stages) == "I0"
    assert label(BackwardWeight(0, 2), stages) == "W0.1"
    assert label(Send(7, 0, 1, "activation"), stages) == "S7"


def test_a_trace_has_a_box_per_action_and_an_arrow_per_message() -> None:
    trace = json.loads(json.dumps(chrome_trace(STEP)))
    kinds = Counter(entry["ph"] for entry in trace["traceEvents"])
    assert kinds == {"M": 2, "X": len(STEP.events), "s": 4, "f": 4}
    starts = {entry["id"]: entry["ts"] for entry in trace["traceEvents"] if entry["ph"] == "s"}
    ends = {entry["id"]: entry["ts"] for entry in trace["traceEvents"] if entry["ph"] == "f"}
    assert starts.keys() == ends.keys()
    assert all(starts[message] <= ends[message] for message in starts)
    backward = next(entry for entry in trace["traceEvents"] if entry.get("name") == "B0" and entry["tid"] == 1)
    assert (backward["ts"], backward["dur"]) == (2000, 2000)
    assert backward["args"] == {"micro_batch": 0, "stage": 1}
