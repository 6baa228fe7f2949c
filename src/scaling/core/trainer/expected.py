"""Measured steps as the schedule predicts them: the actions of the schedule, with the measured durations."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from statistics import fmean

from scaling.core.pipeline.actions import Action, Compute, Message
from scaling.core.pipeline.draw import category, trace_events
from scaling.core.pipeline.lowering import lower_all
from scaling.core.pipeline.schedules import Schedule
from scaling.core.pipeline.simulate import Duration, simulate
from scaling.core.profiler.trace import SIMULATED, Event


def expected_events(
    measured: Sequence[Event], schedule: Schedule, *, ranks: int, micro_batches: int
) -> tuple[Event, ...]:
    """Return the simulated schedule over `ranks` pipe ranks, once for each measured step, from the time when it began.

    Incomplete steps are left out. Empty where no step was measured.
    """
    actions = lower_all(schedule, ranks, micro_batches)
    computed = sum(isinstance(action, Compute) for own in actions for action in own)
    begins: dict[int, float] = defaultdict(lambda: math.inf)
    counts: dict[int, int] = defaultdict(int)
    for event in measured:
        step = event.get("args", {}).get("step")
        if step is not None and event["cat"] in _ACTIONS:
            begins[step] = min(begins[step], event["ts"])
            counts[step] += event["cat"] in _COMPUTATIONS
    complete = [step for step in sorted(begins) if counts[step] and counts[step] % computed == 0]
    if not complete:
        return ()
    simulation = simulate(actions, duration=measured_duration(measured))
    return tuple(
        event
        for step in complete
        for event in trace_events(simulation, microseconds=1.0, begin=begins[step], process=SIMULATED, step=step)
    )


def measured_duration(measured: Sequence[Event]) -> Duration:
    """Return a function that gives the measured durations of actions of training steps, in microseconds.

    For a computation: the mean over everything that was measured, for each stage and kind. For a message: the shortest
    time from the beginning of the send to the end of the receive, since in longer times the receiver waited for
    something else. 0 where nothing was measured.
    """
    lasted: dict[tuple[str, int], list[float]] = defaultdict(list)
    for event in measured:
        if event.get("cat") in _COMPUTATIONS and "step" in event["args"]:
            lasted[event["cat"], event["args"]["stage"]].append(event["dur"])
    means = {which: fmean(durations) for which, durations in lasted.items()}
    shortest: dict[tuple[str, int, int], float] = {}
    for event, taken in _messages(measured):
        which = event["args"]["payload"], event["args"]["source"], event["args"]["target"]
        shortest[which] = min(taken, shortest.get(which, math.inf))

    def duration(action: Action) -> float:
        match action:
            case Compute():
                return means.get((category(action), action.stage), 0.0)
            case Message():
                return max(0.0, shortest.get((action.payload, action.source, action.target), 0.0))

    return duration


def _messages(measured: Sequence[Event]) -> Iterator[tuple[Event, float]]:
    """Yield the sends of training steps, each with the time until it was received."""
    sends: dict[str, Event] = {}
    for event in measured:
        if event.get("cat") == "send" and "step" in event["args"]:
            sends[event["args"]["message"]] = event
    for event in measured:
        if event.get("cat") == "recv" and event["args"].get("message") in sends:
            send = sends[event["args"]["message"]]
            yield send, event["ts"] + event["dur"] - send["ts"]


_COMPUTATIONS = ("forward", "backward", "backwardinput", "backwardweight")
_ACTIONS = (*_COMPUTATIONS, "send", "recv")
