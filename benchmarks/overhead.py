"""Measure what the library costs beside the layers: the engine, the Python of a step, and its plans.

    python3 benchmarks/overhead.py [KEY=VALUE ...] [--steps 1] [--rounds 400] [--json FILE]

Engine: steps of the library against a bare loop over the same layers (called one after another, loss, backward,
clipping and AdamW of torch, fused), in one process, in turn. The model is one that takes about 20 ms a step on a core;
KEY=VALUE changes it. Reported are ratios pair by pair, of processor seconds and of wall time.

Calls: Python functions entered, and tensors allocated, for each further micro-batch and for each optimizer step; and
the blocks of Python's heap that a step leaves behind.

Plans: processor seconds of everything that one rank computes at its start to know what to do, as layers, micro-batches
and ranks grow. No process group is made and no weight is filled: it is a simulated world.
"""

from __future__ import annotations

import gc
import itertools
import socket
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from plan_costs import plan_costs
from reporting import begin, parser, publish
from torch import nn
from train_step import DEFAULT, OneMicroBatch

from scaling.core import LaunchContext, Learner, Loading, ParallelModule, Recipe, Topology
from scaling.transformer import TransformerConfig
from scaling.transformer.recipe import recipe_of

SMALL = {
    "topology.global_batch_size": 2,
    "transformer_architecture.vocab_size": 512,
    "transformer_architecture.hidden_size": 128,
    "transformer_architecture.sequence_length": 64,
}
"""What makes a step of the default model take about 20 ms."""


@dataclass(frozen=True)
class Cost:
    """Of one step."""

    cpu: float
    wall: float


def measured(step: Callable[[], object], steps: int) -> Cost:
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(steps):
        step()
    return Cost((time.process_time() - cpu) / steps, (time.perf_counter() - wall) / steps)


def engine_step(recipe: Recipe, config: TransformerConfig, topology: Topology) -> Callable[[], float]:
    """Return a step of the library."""
    learner = Learner(recipe, config.topology, topology, loading=Loading(pin_memory=False))
    numbers = itertools.count(1)
    return lambda: float(learner.step(next(numbers))[0].loss)


def bare_step(recipe: Recipe, config: TransformerConfig, topology: Topology) -> Callable[[], float]:
    """Return a step of a bare loop over the layers that the library builds, with the same loss and update."""
    module = ParallelModule(recipe.layers(topology), topology, config.topology, seed=recipe.seed)
    layers: list[nn.Module] = [layer for _, layer in module.layers()]
    parameters = list(module.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=3e-4, betas=(0.9, 0.95), fused=True)
    loss_function = recipe.loss(topology)
    batch = OneMicroBatch(config, topology.device).micro_batch
    parts = config.topology.gradient_accumulation_steps

    def step() -> float:
        total = torch.zeros(())
        for _ in range(parts):
            x = batch.inputs
            for layer in layers:
                x = layer(x)
            found = loss_function(x, batch.targets)
            loss = found.loss_sum / (found.weight * parts)
            loss.backward()
            total = total + loss.detach()
        nn.utils.clip_grad_norm_(parameters, config.optimizer.gradient_clipping)
        optimizer.step()
        optimizer.zero_grad()
        return float(total)

    return step


def engine_against_bare(config: TransformerConfig, topology: Topology, *, steps: int, rounds: int) -> dict[str, Any]:
    """Return the cost of a step, and how much more of it the engine takes than a bare loop of the same layers."""
    recipe = recipe_of(config, OneMicroBatch(config, topology.device))
    sides = {"engine": engine_step(recipe, config, topology), "bare": bare_step(recipe, config, topology)}
    costs: dict[str, list[Cost]] = {name: [] for name in sides}
    for step in sides.values():
        measured(step, 20)
    for number in range(rounds):
        for name in sides if number % 2 == 0 else reversed(sides):
            costs[name].append(measured(sides[name], steps))
    pairs = list(zip(costs["engine"], costs["bare"], strict=True))
    return {
        "seconds_per_step": {name: statistics.median(cost.wall for cost in of) for name, of in costs.items()},
        "cpu_seconds_per_step": {name: statistics.median(cost.cpu for cost in of) for name, of in costs.items()},
        "overhead": statistics.median(own.wall / other.wall for own, other in pairs) - 1,
        "cpu_overhead": statistics.median(own.cpu / other.cpu for own, other in pairs) - 1,
        "cpu_overhead_quartiles": [x - 1 for x in statistics.quantiles(own.cpu / other.cpu for own, other in pairs)],
    }


@dataclass(frozen=True)
class Counts:
    """Of one stretch of code."""

    python_calls: int
    tensors_allocated: int
    bytes_allocated: int

    def per(self, other: Counts, number: int) -> dict[str, float]:
        """Return what one of `number` further things costs."""
        return {name: (value - getattr(other, name)) / number for name, value in vars(self).items()}


def counted(run: Callable[[], object]) -> Counts:
    """Count what a call does, in two calls of it: counting the one would count in the other."""
    calls = 0

    def note(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(None)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    assert profiler.profiler is not None
    events = profiler.profiler.kineto_results.events()
    allocated = [event.nbytes() for event in events if event.name() == "[memory]" and event.nbytes() > 0]
    return Counts(calls, len(allocated), sum(allocated))


def counts_of(config: TransformerConfig, topology: Topology) -> dict[str, Counts]:
    """Return the counts of a training pass and of an optimizer step."""
    learner = Learner(recipe_of(config, OneMicroBatch(config, topology.device)), config.topology, topology)
    last: list[Any] = []
    numbers = itertools.count(1)

    def train() -> None:
        last[:] = [
            learner.module.train_step(
                learner.data.training, learner.loss_function, gradient_scale=learner.optimizer.gradient_scale
            )
        ]

    def update() -> None:
        learner.optimizer.step(next(numbers), weight=last[0].weight)

    for _ in range(3):
        train()
        update()
    return {"pass": counted(train), "optimizer_step": counted(update)}


def python_costs(overrides: list[str], topology: Topology) -> dict[str, Any]:
    """Return the calls and allocations of a micro-batch, a layer of one, and an optimizer step."""
    few = counts_of(configured(overrides, parts=2, layers=2), topology)
    more = counts_of(configured(overrides, parts=6, layers=2), topology)
    deep = counts_of(configured(overrides, parts=2, layers=6), topology)
    deeper = counts_of(configured(overrides, parts=6, layers=6), topology)
    shallow_batch, deep_batch = more["pass"].per(few["pass"], 4), deeper["pass"].per(deep["pass"], 4)
    per_layer = {name: (deep_batch[name] - shallow_batch[name]) / 4 for name in shallow_batch}
    return {
        "per_micro_batch_and_layer": per_layer,
        "per_micro_batch_beside_layers": {name: shallow_batch[name] - 2 * per_layer[name] for name in shallow_batch},
        "per_optimizer_step": {"2_layers": vars(few["optimizer_step"]), "6_layers": vars(deep["optimizer_step"])},
    }


def blocks_left_behind(config: TransformerConfig, topology: Topology, *, steps: int) -> float:
    """Return by how many blocks Python's heap grows in a step."""
    step = engine_step(recipe_of(config, OneMicroBatch(config, topology.device)), config, topology)
    measured(step, steps)
    gc.collect()
    before = sys.getallocatedblocks()
    measured(step, steps)
    gc.collect()
    return (sys.getallocatedblocks() - before) / steps


def configured(overrides: list[str], *, parts: int = 1, layers: int | None = None) -> TransformerConfig:
    """Return the small model in one process, with `parts` micro-batches of one size."""
    small = [f"{key}={value * (parts if key.endswith('batch_size') else 1)}" for key, value in SMALL.items()]
    small += [f"topology.gradient_accumulation_steps={parts}"]
    small += [] if layers is None else [f"transformer_architecture.num_layers={layers}"]
    return TransformerConfig.from_dict(DEFAULT, [*small, *overrides], quiet=True)


def main() -> None:
    arguments = parser(__doc__, steps=1, rounds=400)
    arguments.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    options = arguments.parse_args()
    report = begin()
    config = configured(options.overrides)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = LaunchContext(rank=0, world_size=1, local_rank=0, master_addr="127.0.0.1", master_port=port)
    torch.set_num_threads(1)  # what is not parallel weighs the same in processor seconds and in time
    with Topology.connect(config.topology, launch) as topology:
        report["engine"] = engine_against_bare(config, topology, steps=options.steps, rounds=options.rounds)
        report["python"] = python_costs(options.overrides, topology)
        report["python"]["blocks_left_behind_per_step"] = blocks_left_behind(config, topology, steps=100)
    report["plans"] = plan_costs()
    publish(report, options.json)


if __name__ == "__main__":
    main()
