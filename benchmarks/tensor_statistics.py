"""Measure what the recorder of tensor statistics costs: in steps that it leaves out, and in those that it records.

    python3 benchmarks/tensor_statistics.py [KEY=VALUE ...] [--steps 1] [--rounds 200] [--json FILE]

Learners of one model take turns in one process: without a recorder, with one that no step is due for (`not_due`), and
with some that record every step (`recorded`: what is recorded by default; `with_median`: the median of activations as
well). The model takes about 20 ms a step on a core; KEY=VALUE changes it. Reported are ratios of processor seconds,
round by round, and what the two calls of the hook take by themselves in a step that is not due.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from overhead import configured, measured
from reporting import begin, parser, publish
from torch import Tensor
from train_step import OneMicroBatch

from scaling.core import Learner, TensorStatisticsRecorderConfig, Topology, TrainerConfig, TrainerView
from scaling.core.trainer.state import TrainState
from scaling.core.trainer.statistics import StatisticsHook
from scaling.transformer import TransformerConfig
from scaling.transformer.recipe import recipe_of

NEVER = 10**9
MEDIANS = {"interval": 1, "statistics": [["activations/*", ["median"]], ["*", ["mean", "std"]]]}
RECORDERS: dict[str, dict[str, Any] | None] = {
    "without": None,
    "not_due": {"interval": NEVER},
    "recorded": {"interval": 1},
    "with_median": MEDIANS,
}


@dataclass
class View:
    """What the hook sees of a trainer."""

    learner: Learner
    config: TrainerConfig = field(default_factory=TrainerConfig)
    state: TrainState = field(default_factory=TrainState)
    numbers: int = 0

    @property
    def metrics(self) -> View:
        return self

    def add_vector(self, step: int, names: Sequence[str], values: Tensor) -> None:
        """Count what would be written."""
        self.numbers = len(values.tolist())


def stepping(config: TransformerConfig, recorder: dict[str, Any] | None) -> tuple[Callable[[], None], View]:
    """Return a step of a learner of its own, and what its hook sees."""
    topology = Topology.single()
    learner = Learner(recipe_of(config, OneMicroBatch(config, topology.device)), config.topology, topology)
    view = View(learner)
    trainer = cast(TrainerView, view)
    hooks = [] if recorder is None else [StatisticsHook(TensorStatisticsRecorderConfig.from_dict(recorder), learner)]
    steps = itertools.count(1)

    def step() -> None:
        for hook in hooks:
            hook.before_step(trainer)
        loss, report = learner.step(next(steps))
        view.state.advance(samples=learner.samples_per_step)
        for hook in hooks:
            hook.after_step(trainer, report)
        float(loss.loss)

    return step, view


def hook_seconds(config: TransformerConfig, calls: int = 10_000) -> float:
    """Return the processor seconds of a step's calls of a hook that has nothing to do."""
    topology = Topology.single()
    learner = Learner(recipe_of(config, OneMicroBatch(config, topology.device)), config.topology, topology)
    trainer, hook = cast(TrainerView, View(learner)), StatisticsHook(TensorStatisticsRecorderConfig(), learner)
    report = learner.step(1)[1]

    def both() -> None:
        hook.before_step(trainer)
        hook.after_step(trainer, report)

    return measured(both, calls).cpu


def main() -> None:
    arguments = parser(__doc__, steps=1, rounds=200)
    arguments.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    options = arguments.parse_args()
    report = begin()
    torch.set_num_threads(1)
    config = configured(options.overrides)
    sides = {name: stepping(config, recorder) for name, recorder in RECORDERS.items()}
    for step, _ in sides.values():
        measured(step, 10)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(options.rounds):
        for name in list(sides)[:: 1 if number % 2 else -1]:
            seconds[name].append(measured(sides[name][0], options.steps).cpu)
    plain = seconds["without"]
    report["cpu_seconds_per_step"] = {name: statistics.median(own) for name, own in seconds.items()}
    report["relative_to_without"] = {
        name: statistics.quantiles(own / other for own, other in zip(seconds[name], plain, strict=True))
        for name in sides
        if name != "without"
    }
    report["microseconds_not_due"] = hook_seconds(config) * 1e6
    report["numbers"] = {name: view.numbers for name, (_, view) in sides.items() if view.numbers}
    publish(report, options.json)


if __name__ == "__main__":
    main()
