"""The events of torch.profiler in this process, moved to the common clock, as an addition to the timeline."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, final

import torch

FIRST_PROCESS: Final = 1000
"""The process of rank 0's events in the trace. Rank r has this number plus r."""


@final
class TorchProfiler:
    """A recording by torch.profiler between two moments. The first start takes a second or more."""

    def __init__(self, device: torch.device) -> None:
        kinds = torch.profiler.ProfilerActivity
        self._profile = torch.profiler.profile(
            activities=[kinds.CPU, *([kinds.CUDA] if device.type == "cuda" else [])], acc_events=True
        )
        self._running = False

    def start(self) -> None:
        """Start recording."""
        self._profile.start()
        self._running = True

    def stop(self) -> None:
        """Stop recording. On a GPU this waits for the device. Safe to call twice."""
        if self._running:
            self._running = False
            self._profile.stop()

    def trace(self) -> dict[str, Any]:
        """Return the recorded trace as torch writes it. Call after `stop`."""
        with tempfile.TemporaryDirectory(prefix="scaling_profile_") as folder:
            path = Path(folder, "trace.json")
            self._profile.export_chrome_trace(str(path))
            trace: dict[str, Any] = json.loads(path.read_text(errors="replace"))
        return trace


def adapted(trace: Mapping[str, Any], *, rank: int, to_wall: Callable[[float], float]) -> list[dict[str, Any]]:
    """Return the events of a torch.profiler trace as the events of one rank.

    `to_wall` converts seconds of this host's wall clock to those of the common clock. torch counts microseconds from
    `baseTimeNanoseconds` of the wall clock. The trace's processes (this one and the GPUs) become one process whose rows
    are their threads and streams; arrows get new identities, since all ranks count them from the same number.
    """
    base = trace.get("baseTimeNanoseconds", 0) / 1e3
    rows: dict[tuple[Any, Any], int] = {}
    names: dict[tuple[Any, Any], str] = {}
    found = []
    for event in trace["traceEvents"]:
        place = event.get("pid"), event.get("tid")
        if event.get("ph") == "M":
            if event["name"] == "thread_name":
                names[place] = event["args"]["name"]
            continue
        if event.get("ph") not in _KINDS or "ts" not in event:
            continue
        begin = to_wall((base + event["ts"]) / 1e6) * 1e6
        row = rows.setdefault(place, len(rows))
        moved = {**event, "pid": FIRST_PROCESS + rank, "tid": row, "ts": begin}
        if "dur" in event:  # the difference of rounded ends, as for other spans
            moved["dur"] = to_wall((base + event["ts"] + event["dur"]) / 1e6) * 1e6 - begin
        if "id" in event:
            moved["id"] = f"{rank}/{event['id']}"
        found.append(moved)
    named = [_name("thread_name", rank, row, names.get(place, f"thread {place[1]}")) for place, row in rows.items()]
    return [_name("process_name", rank, 0, f"torch.profiler, rank {rank}"), *named, *found]


_KINDS: Final = ("X", "s", "f", "t", "i", "C")


def _name(what: str, rank: int, row: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": FIRST_PROCESS + rank, "tid": row, "args": {"name": name}}
