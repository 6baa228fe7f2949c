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

    `microseconds` is how long one unit of the simulation's time is drawn.
    """
    rows = [
        {"ph": "M", "name": "thread_name", "pid": 0, "tid": rank, "args": {"name": f"rank {rank}"}}
        for rank in range(len(simulation.idle))
    ]
    entries = [entry for event in simulation.events for entry in _entries(event, simulation.stages, microseconds)]
    return {"traceEvents": rows + entries, "displayTimeUnit": "ms"}


def _entries(event: Event, stages: StageMap, microseconds: float) -> list[dict[str, Any]]:
    """Return the trace entries of one event: its box, and for a message the end of an arrow."""
    action = event.action
    start, end = event.start * microseconds, event.end * microseconds
    row = {"pid": 0, "tid": event.rank}
    category = type(action).__name__.lower()
    box = {"ph": "X", "name": label(action, stages), "cat": category, "ts": start, "dur": end - start, **row}
    entries = [{**box, "args": asdict(action)}]
    match action:
        case Send(micro_batch, source, target) | Recv(micro_batch, source, target):
            name = f"{action.payload} {micro_batch}:{source}>{target}"
            arrow = {"name": action.payload, "cat": "message", "id": name, **row}
            sends = isinstance(action, Send)
            entries.append(arrow | ({"ph": "s", "ts": start} if sends else {"ph": "f", "bp": "e", "ts": end}))
    return entries


def _computes(event: Event) -> bool:
    return isinstance(event.action, Compute)
