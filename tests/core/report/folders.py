"""Folders as runs leave them, made without a run."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scaling.core.logging.run_state import RunPhase, RunState

RESOLVED = (
    "topology: {pipe_parallel_size: 2, data_parallel_size: 2, model_parallel_size: 1, "
    "micro_batch_size: 2, gradient_accumulation_steps: 4}\n"
)
"""As much of a configuration as says how a step is cut."""
FOUR_RANKS = {"pipe": 2, "data": 2, "context": 1, "model": 1}


def steps(first: int, last: int, *, offset: float = 0.0) -> list[dict[str, Any]]:
    """Return the metrics of some steps, an evaluation after every tenth."""
    lines: list[dict[str, Any]] = []
    for step in range(first, last + 1):
        lines.append(
            {
                "step": step,
                "training/loss": 5 + 3 * math.exp(-step / 40) + 0.1 * math.sin(step) + offset,
                "training/global_grad_norm": 1 + 0.3 * math.cos(step),
                "training/learning_rate_all": 1e-3 * min(1.0, step / 20),
                "training/step_duration": 0.5,
                "training/tokens_per_second": 4096.0,
                "training/consumed_tokens": step * 2048,
                "training/peak_memory_bytes": 2.0**30,
            }
        )
        if step % 10 == 0:
            lines.append({"step": step, "evaluation/loss": 5.5 - step / 1000})
    return lines


def write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Append JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def write_run(
    folder: Path,
    *,
    metrics: Iterable[Mapping[str, Any]] | None = None,
    again: Iterable[Mapping[str, Any]] = (),
    events: Iterable[Mapping[str, Any]] = (),
    state: RunState | None = None,
    config: str | None = RESOLVED,
    attempts: Sequence[Mapping[str, Any]] = (),
    about: Mapping[str, Any] | None = None,
) -> Path:
    """Write what a run of four ranks leaves: 120 steps that were finished, unless said otherwise."""
    folder.mkdir(parents=True)
    write_lines(folder / "metrics.jsonl", steps(1, 120) if metrics is None else metrics)
    if again:
        write_lines(folder / "metrics.repeated.jsonl", again)
    if events:
        write_lines(folder / "events.jsonl", events)
    (state or RunState(state=RunPhase.FINISHED, step=120, exit_status=0)).write(folder)
    if config is not None:
        (folder / "config.yml").write_text(config, encoding="utf-8")
    told: Mapping[str, Any] = {
        "started": "2030-01-01T00:00:00+00:00",
        "versions": {"torch": "2.13.0"},
        "layout": FOUR_RANKS,
    }
    (folder / "run.json").write_text(json.dumps({**(about or told), "attempts": attempts}), encoding="utf-8")
    return folder


def profile(spans: Iterable[tuple[int, int, str, float, float]]) -> dict[str, Any]:
    """Return a Chrome trace of (process, thread, kind, start, duration), in microseconds."""
    events: list[dict[str, Any]] = []
    threads = set()
    for process, thread, kind, start, duration in spans:
        threads.add((process, thread))
        event = {"ph": "X", "name": kind[0].upper(), "cat": kind, "pid": process, "tid": thread}
        events.append({**event, "ts": start, "dur": duration})
    names = [
        {"ph": "M", "name": "thread_name", "pid": process, "tid": thread, "args": {"name": f"rank {thread}"}}
        for process, thread in sorted(threads)
    ]
    return {"traceEvents": [*names, *events], "displayTimeUnit": "ms", "otherData": {"clock_uncertainty_us": 120.0}}
