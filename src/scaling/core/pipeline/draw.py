"""Show a simulated step: as text in a terminal, and as a trace for chrome://tracing or ui.perfetto.dev."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from scaling.core.pipeline.actions import Action, Compute, Recv, Send
from scaling.core.pipeline.simulate import Event, Simulation
from scaling.core.pipeline.stage_map import StageMap


def label(action: Action, stages: StageMap) -> str:
    """Return a short name: `F3`, `B3`, `S3`, `R3` do something with micro-batch 3, `F3.1` on a rank's second stage.

    `I3` and `W3` are the halves of a backward pass: the gradients of the input, and of the weights. `C3` chooses
    tokens, `A3` takes them in.
    """
    chunk = stages.chunk_of(action.stage) if isinstance(action, Compute) else 0
    return f"{action.letter}{action.micro_batch}" + (f".{chunk}" if chunk else "")


def draw(simulation: Simulation, *, width: int = 120) -> str:
    """Return one line per rank with time from left to right, folded into blocks of at most `width` columns.

    A computation fills its columns with its label and `=`, idle time is `.`:

        rank 0  F0 F1 ......B0=== ...B1===
        rank 1  ...F0 B0=== F1 B1=== ......
    """
    ranks = len(simulation.idle)
    computing = [event for event in simulation.events if _computes(event) and event.end > event.start]
    columns = (
        max((len(label(one.action, simulation.stages)) + 1) / (one.end - one.start) for one in computing)
        if computing
        else 0.0
    )
    lines = [""] * ranks
    for event in computing:
        start, end = round(event.start * columns), round(event.end * columns)
        drawn = label(event.action, simulation.stages).ljust(end - start - 1, "=") + " "
        lines[event.rank] = lines[event.rank].ljust(start, ".") + drawn
    lines = [line.ljust(round(simulation.makespan * columns), ".") for line in lines]

    margin = len(f"rank {ranks - 1}") + 2
    fold = max(width - margin, 1)
    blocks = (
        "\n".join(
            (f"rank {rank}".ljust(margin) + line[start : start + fold]).rstrip() for rank, line in enumerate(lines)
        )
        for start in range(0, max(len(line) for line in lines), fold)
    )
    return "\n\n".join(blocks)


def chrome_trace(simulation: Simulation, *, microseconds: float = 1000.0) -> dict[str, Any]:
    """Return the step in the trace event format, ready for `json.dump`: a row per rank, an arrow per message.

    `microseconds` is the drawn length of one unit of the simulation's time.
    """
    rows = [
        {"ph": "M", "name": "thread_name", "pid": 0, "tid": rank, "args": {"name": f"rank {rank}"}}
        for rank in range(len(simulation.idle))
    ]
    return {"traceEvents": rows + trace_events(simulation, microseconds=microseconds), "displayTimeUnit": "ms"}


def trace_events(
    simulation: Simulation, *, microseconds: float, begin: float = 0.0, process: int = 0, step: int | None = None
) -> list[dict[str, Any]]:
    """Return the boxes and arrows of a step that begins at `begin` (in microseconds), without names for the rows.

    A `step` is noted with each box, and keeps the arrows of several steps of one trace apart.
    """
    noted = {} if step is None else {"step": step}
    entries = []
    for event in simulation.events:
        row = {"pid": process, "tid": event.rank}
        start, end = begin + event.start * microseconds, begin + event.end * microseconds
        box = {"ph": "X", "name": label(event.action, simulation.stages), "cat": category(event.action), **row}
        entries.append({**box, "ts": start, "dur": end - start, "args": {**noted, **asdict(event.action)}})
        if isinstance(event.action, (Send, Recv)):
            action = event.action
            name = f"{action.payload} {action.micro_batch}:{action.source}>{action.target}"
            which = name if step is None else f"step {step} {name}"
            arrow = {"name": action.payload, "cat": "message", "id": which, **row}
            sends = isinstance(action, Send)
            entries.append(arrow | ({"ph": "s", "ts": start} if sends else {"ph": "f", "bp": "e", "ts": end}))
    return entries


def category(action: Action) -> str:
    """Return the kind of an action in a trace: forward, backward, backwardinput, backwardweight, send, recv."""
    return type(action).__name__.lower()


def _computes(event: Event) -> bool:
    return isinstance(event.action, Compute)
