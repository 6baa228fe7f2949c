"""Measure what recording a timeline costs, and what it costs when it is off.

    python3 benchmarks/profiler.py [KEY=VALUE ...] [--steps 2] [--rounds 200] [--json FILE]

On: steps of the library with a window open and without one, in one process, in turn; the model is one that takes about
20 ms a step on a core, KEY=VALUE changes it. Reported are the median over pairs of what a step takes longer, with spans
and (in a twentieth of the rounds: each writes megabytes) with torch.profiler too, the spans and the bytes of one step,
the time of a span, and the part of a step that all its spans take by these numbers.

Off: nanoseconds of a call of a function that waits for other ranks, which is where collectives are seen, and how many
of them are for looking whether somebody wants to see it.
"""

from __future__ import annotations

import itertools
import json
import socket
import statistics
import timeit
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from overhead import SMALL, configured, measured
from reporting import begin, parser, publish
from train_step import OneMicroBatch

from scaling.core import LaunchContext, Learner, Loading, Profiler, Topology
from scaling.core.profiler.clock import HostClock
from scaling.core.trainer.recording import Recording
from scaling.core.waiting import is_dynamo_compiling, observation, waits
from scaling.transformer.recipe import recipe_of


@contextmanager
def recording(learner: Learner, *, with_torch: bool, sizes: list[dict[str, int]]) -> Iterator[None]:
    """Record a window, as the trainer does."""
    window = Recording(learner.topology, learner, HostClock(), with_torch=with_torch)
    window.profiler.common = {"step": 1}
    yield
    content = window.finish()
    assert content is not None
    events = json.loads(content)["traceEvents"]
    sizes.append({"bytes": len(content), "spans": sum(one["ph"] == "X" and one["pid"] == 0 for one in events)})


def longer(
    learner: Learner, windows: Callable[[], AbstractContextManager[None]], steps: int, rounds: int
) -> tuple[float, float]:
    """Return by which part a step takes longer within a window, and how many seconds it takes without one."""
    numbers = itertools.count(1)

    def step() -> float:
        return float(learner.step(next(numbers))[0].loss)

    measured(step, 10)
    ratios, plain = [], []
    for number in range(rounds):
        costs = {}
        for name, window in sorted({"on": windows, "off": nullcontext}.items(), reverse=number % 2 == 0):
            with window():
                costs[name] = measured(step, steps).wall
        ratios.append(costs["on"] / costs["off"])
        plain.append(costs["off"])
    return statistics.median(ratios) - 1, statistics.median(plain)


def nanoseconds(call: Callable[[], object]) -> float:
    """Return what a call takes, beside the loop around it."""
    number = 100_000
    empty = min(timeit.repeat(lambda: None, number=number))
    return (min(timeit.repeat(call, number=number)) - empty) / number * 1e9


@waits
def nothing() -> None:
    """Stand for a collective."""


def span_of(profiler: Profiler) -> None:
    """Record a span."""
    with profiler.record("all_reduce data 4 MiB", "collective", bytes=4):
        pass


def main() -> None:
    arguments = parser(__doc__, steps=2, rounds=200)
    arguments.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    options = arguments.parse_args()
    report = begin()
    report["model"] = SMALL
    config = configured(options.overrides, parts=2)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = LaunchContext(rank=0, world_size=1, local_rank=0, master_addr="127.0.0.1", master_port=port)
    torch.set_num_threads(1)
    with Topology.connect(config.topology, launch) as topology:
        data = OneMicroBatch(config, topology.device)
        learner = Learner(recipe_of(config, data), config.topology, topology, loading=Loading(pin_memory=False))
        on: dict[str, Any] = {}
        profiler = Profiler(torch.device("cpu"))
        on["nanoseconds_per_span"] = nanoseconds(lambda: span_of(profiler))
        for name, with_torch in (("spans", False), ("spans_and_torch_profiler", True)):
            sizes: list[dict[str, int]] = []
            windows = partial(recording, learner, with_torch=with_torch, sizes=sizes)
            rounds = options.rounds // 20 if with_torch else options.rounds
            part, seconds = longer(learner, windows, options.steps, rounds)
            per_step = {what: value / options.steps for what, value in sizes[-1].items()}
            on[name] = {"step_takes_longer_percent": 100 * part, "seconds_per_step": seconds, "per_step": per_step}
        on["all_spans_percent_of_a_step"] = (
            on["spans"]["per_step"]["spans"] * on["nanoseconds_per_span"] / on["spans"]["seconds_per_step"] / 1e7
        )
    report["on"] = on
    report["off"] = {
        "nanoseconds_per_marked_call": nanoseconds(nothing),
        "of_them_for_looking": nanoseconds(lambda: is_dynamo_compiling() or observation.by is None),
    }
    publish(report, options.json)


if __name__ == "__main__":
    main()
