"""The budget of a step: where its time goes, on each rank, in parts that add up.

    python3 benchmarks/budget.py [KEY=VALUE ...] [--config FILE] [--steps 20] [--timeline FILE] [--json FILE]

Part of `train_step.py`, which runs it after the steps it measures: clocks cost time, and on a GPU each waits for the
device, so that nothing overlaps. Every moment of a step counts for the innermost part that has begun (`Clock`):

data                 reading a micro-batch
forward, backward    the layers
loss                 loss function, with the product of the head, forward and backward
communication        waiting in collectives: what of them is not hidden
pipeline             waiting for a neighbouring stage, or for the last of all ranks to finish its pass; sending
optimizer            the update, without the communication in it
rest                 everything else: the engine, hooks, Python

With a pipeline, also what the simulator makes of the measured times of the stages, and what the pass takes. With data
parallelism, also what the collectives of a step take alone, one after another, and so which share of them is hidden.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from reporting import begin, parser, publish


def budget(config: str | None, defaults: dict[str, Any], overrides: list[str], *, world: int, steps: int) -> Any:
    """Return what the ranks report, each a process of its own, and what follows from all of it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = {"config": config, "defaults": defaults, "overrides": overrides, "steps": steps}
    script = str(Path(__file__).with_name("budget_rank.py"))
    path = os.pathsep.join([str(Path(__file__).parents[1] / "src"), os.environ.get("PYTHONPATH", "")])
    processes = [
        subprocess.Popen(
            [sys.executable, script, json.dumps({**given, "rank": rank, "world": world, "port": port})],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
            text=True,
        )
        for rank in range(world)
    ]
    answers = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise SystemExit("a rank of the budget failed; what it said is above")
    return [json.loads(answer.splitlines()[-1]) for answer in answers]


def summary(ranks: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the budget without the timeline, and what all ranks together tell."""
    report: dict[str, Any] = {
        "seconds_per_step": max(rank["seconds_per_step"] for rank in ranks),
        "by_rank": [rank["parts"] for rank in ranks],
    }
    if "stage_seconds" in ranks[0]:
        report["pipeline"] = prediction(ranks)
    if "collectives_alone" in ranks[0]:
        alone = max(rank["collectives_alone"] for rank in ranks)
        exposed = min(rank["parts"]["communication"] for rank in ranks)  # the others also wait for this rank
        report["collectives"] = {"alone": alone, "exposed": exposed, "hidden": 1 - exposed / alone}
    return report


def prediction(ranks: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what a pass takes by the simulator, from the measured times of the stages, and what it took."""
    from scaling.core.pipeline.actions import Action, Compute
    from scaling.core.pipeline.lowering import lower_all
    from scaling.core.pipeline.schedules import GPipe, Interleaved1F1B, OneFOneB
    from scaling.core.pipeline.simulate import simulate

    shape = ranks[0]["pipeline"]
    schedules = {"gpipe": GPipe(), "1f1b": OneFOneB(), "interleaved_1f1b": Interleaved1F1B(shape["chunks"])}
    measured = {key: value for rank in ranks for key, value in rank["stage_seconds"].items()}

    def duration(action: Action) -> float:
        return measured[f"{type(action).__name__} {action.stage}"] if isinstance(action, Compute) else 0.0

    simulated = simulate(
        lower_all(schedules[shape["schedule"]], shape["ranks"], shape["micro_batches"]), duration=duration
    )
    took = max(rank["seconds_per_pass"] for rank in ranks)
    return {
        "stage_seconds": measured,
        "predicted_seconds_per_pass": simulated.makespan,
        "predicted_bubble": simulated.bubble,
        "seconds_per_pass": took,
        "fraction_of_prediction": simulated.makespan / took,
    }


def timeline(ranks: list[dict[str, Any]]) -> str:
    """Return the last step of all ranks in the trace event format, which Perfetto and chrome://tracing read."""
    events = [
        {"ph": "X", "name": name, "pid": number, "tid": lane, "ts": start * 1e6, "dur": (end - start) * 1e6}
        for number, rank in enumerate(ranks)
        for lane, name, start, end in rank["timeline"]
    ]
    return json.dumps({"traceEvents": events, "displayTimeUnit": "ms"})


def arguments() -> argparse.ArgumentParser:
    made = parser(__doc__, steps=20)
    made.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    made.add_argument("--config", type=Path)
    made.add_argument("--timeline", type=Path)
    return made


def main() -> None:
    from train_step import DEFAULT

    from scaling.transformer import TransformerConfig

    options = arguments().parse_args()
    path = options.config and str(options.config)
    config = (
        TransformerConfig.from_yaml(path, options.overrides)
        if path
        else TransformerConfig.from_dict(DEFAULT, options.overrides)
    )
    ranks = budget(path, DEFAULT, options.overrides, world=config.topology.world_size, steps=options.steps)
    if options.timeline is not None:
        options.timeline.write_text(timeline(ranks))
    publish(begin() | {"budget": summary(ranks)}, options.json)


if __name__ == "__main__":
    main()
