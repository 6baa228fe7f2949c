"""Measure what the kinds of activation checkpointing keep and cost: disabled, selective, every_layer, every_pipe_stage.

    python3 benchmarks/recompute.py [KEY=VALUE ...] [--config FILE] [--steps 2] [--rounds 5] [--json FILE]

All kinds live at once, each in a process of its own, and take turns. Bytes are those of tensors that are alive at
once, at most, in a step, above those alive before it (the memory events of torch.profiler; on a GPU
max_memory_allocated). Seconds are processor time on a CPU, medians over the rounds; places between disabled (0) and
every_layer (1) are of the medians, seconds relative to disabled round by round. The loss of all kinds is the same, to
the last bit.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from reporting import begin, parser, publish
from train_step import DEFAULT, scaling_side

from scaling.core import LaunchContext
from scaling.transformer import TransformerConfig

KINDS = ("disabled", "selective", "every_layer", "every_pipe_stage")


def peak_bytes(step: Any, device: torch.device) -> int:
    """Return the most bytes of tensors that a step has alive at once, above those alive before it."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        return torch.cuda.max_memory_allocated(device) - before
    return max([0, *alive_bytes(step)])


def alive_bytes(step: Any) -> list[int]:
    """Return the bytes of tensors on a CPU that are alive after each change in a step, above those alive before it."""
    with torch.profiler.profile(profile_memory=True) as profile:
        step()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    changes = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event["name"] == "[memory]")
    return list(itertools.accumulate(change for _, change in changes))


def take_steps(kind: str, config: str | None, overrides: list[str]) -> None:
    """Take as many steps as each line of the standard input says, and answer with their seconds; 0 ends it."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    given = [*overrides, f"topology.activation_checkpointing_type={kind}"]
    read = TransformerConfig.from_yaml(config, given, quiet=True) if config else None
    torch.set_num_threads(1)
    step, device = scaling_side(
        read or TransformerConfig.from_dict(DEFAULT, given, quiet=True),
        LaunchContext(rank=0, world_size=1, local_rank=0, master_addr="127.0.0.1", master_port=29500),
    )
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    losses = [step(), step()]
    answers.write(json.dumps({"bytes": peak_bytes(step, device), "loss": losses[-1]}) + "\n")
    answers.flush()
    for line in sys.stdin:
        if int(line) == 0:
            return
        before = clock()
        for _ in range(int(line)):
            step()
        answers.write(json.dumps((clock() - before) / int(line)) + "\n")
        answers.flush()


def main() -> None:
    arguments = parser(__doc__, steps=2, rounds=5)
    arguments.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    arguments.add_argument("--config")
    arguments.add_argument("--kind", choices=KINDS, help="be the process of one kind")
    options = arguments.parse_args()
    if options.kind is not None:
        return take_steps(options.kind, options.config, options.overrides)
    config = ["--config", options.config] if options.config else []
    processes = {
        kind: subprocess.Popen(
            [sys.executable, __file__, *options.overrides, "--kind", kind, *config],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for kind in KINDS
    }

    def answer(kind: str) -> Any:
        return json.loads(processes[kind].stdout.readline())  # type: ignore[union-attr]  # it is a pipe

    def ask(kind: str, steps: int) -> None:
        print(steps, file=processes[kind].stdin, flush=True)

    found = {kind: answer(kind) for kind in KINDS}
    assert len({figures["loss"] for figures in found.values()}) == 1, found
    rounds: list[dict[str, float]] = []
    for number in range(options.rounds):
        rounds.append({})
        for kind in KINDS if number % 2 == 0 else KINDS[::-1]:
            ask(kind, options.steps)
            rounds[-1][kind] = answer(kind)
    for kind in KINDS:
        ask(kind, 0)
        processes[kind].wait()
    report = begin() | {"kinds": {}}
    for kind in KINDS:
        report["kinds"][kind] = {
            "peak_bytes": found[kind]["bytes"],
            "seconds": statistics.median(seconds[kind] for seconds in rounds),
            "seconds_relative_to_disabled": statistics.median(s[kind] / s["disabled"] for s in rounds),
        }
    low, high = (found[kind]["bytes"] for kind in ("every_layer", "disabled"))
    relative = {kind: report["kinds"][kind]["seconds_relative_to_disabled"] for kind in KINDS}
    report["place_of_selective"] = {
        "bytes": (high - found["selective"]["bytes"]) / (high - low),
        "seconds": (relative["selective"] - 1) / (relative["every_layer"] - 1),
    }
    publish(report, options.json)


if __name__ == "__main__":
    main()
