"""One rank of `budget.py`: takes steps, with a clock around everything that has a part of its own in the budget."""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from clock import Clock
from torch import Tensor
from train_step import learner_of

from scaling.core import LaunchContext, Learner, MicroBatch, waiting
from scaling.core.collectives import ops
from scaling.core.collectives.exchanges import Exchanges
from scaling.core.pipeline.actions import Action, Compute, Forward
from scaling.core.pipeline.link import Outbox
from scaling.core.pipeline.loss import StepLoss
from scaling.transformer import TransformerConfig

PARTS = ("data", "forward", "backward", "loss", "communication", "pipeline", "optimizer", "rest")

COLLECTIVES = (
    *("all_reduce", "reduce", "broadcast", "reduce_scatter_tensor", "reduce_scatter_single"),
    *("all_gather_into_tensor", "all_gather_single"),
)
"""The functions of torch.distributed that a step of a data-parallel rank may call, so far as this version has them."""


class ObservedMarks(waiting.Marks):
    """The marks of this thread, whose changes are told to a clock: waiting is communication, but in the pipeline."""

    __slots__ = ("_clock", "_innermost")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._innermost: waiting.Wait | None = None

    @property
    def innermost(self) -> waiting.Wait | None:  # type: ignore[override]
        return self._innermost

    @innermost.setter
    def innermost(self, wait: waiting.Wait | None) -> None:
        before, self._innermost = self._innermost, wait
        if before is None and wait is not None:
            self._clock.enter("pipeline" if self._clock.innermost == "pipeline" else "communication")
        elif before is not None and wait is None:
            self._clock.leave()


class Instruments:
    """What is put around a learner's parts, and what it has read so far."""

    def __init__(self, learner: Learner, device: torch.device) -> None:
        def now() -> float:
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            return time.perf_counter()

        self.clock = Clock(now)
        self.stage_seconds: dict[str, list[float]] = {}
        self.learner = learner
        self.pipelined = learner.module.engine.stage_map.last > 0
        self.works: list[tuple[str, float, float]] = []
        """Collectives that were started and not waited for at once, from their start to their end."""
        self.calls: list[Callable[[], Any]] = []
        """What runs each collective of a step once more."""

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Time what happens inside."""
        learner, clock = self.learner, self.clock
        engine, loss_function = learner.module.engine, learner.loss_function
        last_pass = "pipeline" if self.pipelined else "communication"
        patches = [
            mock.patch.object(engine, "timer", self.timer),
            mock.patch.object(learner, "loss_function", self.loss(loss_function)),
            mock.patch.object(learner.optimizer, "step", clock.timed(learner.optimizer.step, "optimizer")),
            mock.patch.object(Outbox, "wait", clock.timed(Outbox.wait, "pipeline")),
            mock.patch.object(StepLoss, "reduce", clock.timed(StepLoss.reduce, last_pass)),
            mock.patch.object(type(learner.data.training), "__next__", self.reading()),
            mock.patch.object(waiting._own, "marks", ObservedMarks(clock)),
        ]
        patches += [
            mock.patch.object(owner, name, self.collective(getattr(owner, name)))
            for owner, names in (
                (dist, COLLECTIVES),
                (ops, ("_reduce_scatter", "_all_gather")),
                (Exchanges, ("all_reduce", "reduce_scatter", "all_gather", "broadcast")),
            )
            for name in names
            if hasattr(owner, name)
        ]
        for patch in patches:
            patch.start()
        try:
            yield
        finally:
            for patch in reversed(patches):
                patch.stop()

    @contextmanager
    def timer(self, action: Action) -> Iterator[None]:
        """Time an action of the engine."""
        if not isinstance(action, Compute):
            with self.clock.within("pipeline"):
                yield
            return
        part = "forward" if isinstance(action, Forward) else "backward"
        ends = action.stage == self.learner.module.engine.stage_map.last and part == "backward"
        before = sum(self.clock.seconds.get(name, 0.0) for name in ("forward", "backward", "loss", "communication"))
        with self.clock.within("loss" if ends else part):
            yield
        after = sum(self.clock.seconds.get(name, 0.0) for name in ("forward", "backward", "loss", "communication"))
        key = f"{type(action).__name__} {action.stage}"
        self.stage_seconds.setdefault(key, []).append(after - before)

    def loss(self, function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        """Time a loss function. Its backward pass ends when the hidden states have their gradient."""

        def arrived(gradient: Tensor) -> None:
            if self.clock.innermost == "loss":
                self.clock.change("backward")

        def call(output: Any, targets: Any) -> Any:
            hidden = getattr(output, "hidden", None)
            if isinstance(hidden, Tensor) and hidden.requires_grad:
                hidden.register_hook(arrived)
            with self.clock.within("loss"):
                return function(output, targets)

        return call

    def reading(self) -> Callable[[Any], MicroBatch]:
        read = type(self.learner.data.training).__next__

        def call(loader: Any) -> MicroBatch:
            with self.clock.within("data"):
                return read(loader)

        return call

    def collective(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Note a collective's start, its end where it runs beside other work, and how to run it again."""

        def call(*args: Any, **options: Any) -> Any:
            start = time.perf_counter()
            self.calls.append(lambda: function(*args, **options))
            work = function(*args, **options)
            if work is not None and args and isinstance(args[0], Tensor) and args[0].device.type == "cpu":
                name = f"{function.__name__} {args[0].numel() * args[0].element_size() / 2**20:.2f} MiB"
                work.get_future().add_done_callback(lambda _: self.works.append((name, start, time.perf_counter())))
            return work

        return call

    def forget(self) -> None:
        """Begin a new step."""
        self.clock.restart()
        self.works.clear()
        self.calls.clear()


def alone(calls: list[Callable[[], Any]], device: torch.device) -> float:
    """Return the seconds that collectives take with nothing beside them, one after another. What they sum is lost."""
    begin = time.perf_counter()
    for call in calls:
        work = call()
        if work is not None:
            work.wait()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin


def main() -> None:
    given = json.loads(sys.argv[1])
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # whatever a library prints goes beside the answer
        answers.write(json.dumps(measured(given)) + "\n")


def measured(given: dict[str, Any]) -> dict[str, Any]:
    """Return this rank's budget of a step: medians over the steps, made to add up by their rest."""
    config = (
        TransformerConfig.from_yaml(given["config"], given["overrides"], quiet=True)
        if given["config"]
        else TransformerConfig.from_dict(given["defaults"], given["overrides"], quiet=True)
    )
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // given["world"]))
    rank, world, port = given["rank"], given["world"], given["port"]
    launch = LaunchContext(rank=rank, world_size=world, local_rank=rank, master_addr="127.0.0.1", master_port=port)
    learner, device = learner_of(config, launch)
    for step in range(1, 6):
        float(learner.step(step)[0].loss)
    instruments = Instruments(learner, device)
    totals, passes, budgets = [], [], []
    with instruments.attached():
        update = learner.optimizer.step
        for step in range(6, 7 + given["steps"]):
            instruments.forget()
            if step == 6:  # attaching has cost time
                instruments.stage_seconds.clear()
            begin = time.perf_counter()
            with (
                instruments.clock.within("rest"),
                mock.patch.object(learner.optimizer, "step", noting(update, ended := [])),
            ):
                float(learner.step(step)[0].loss)
            totals.append(sum(instruments.clock.seconds.values()))
            passes.append(ended[0] - begin)
            budgets.append({part: instruments.clock.seconds.get(part, 0.0) for part in PARTS})
    del totals[0], passes[0], budgets[0]
    typical = sorted(range(len(totals)), key=totals.__getitem__)[len(totals) // 4 : len(totals) - len(totals) // 4]
    parts = {part: statistics.mean(budgets[number][part] for number in typical) for part in PARTS}
    report: dict[str, Any] = {
        "seconds_per_step": sum(parts.values()),
        "parts": parts,
        "timeline": [(0, *span) for span in instruments.clock.spans] + [(1, *work) for work in instruments.works],
    }
    topology = config.topology
    if instruments.pipelined:
        report["stage_seconds"] = {
            name: statistics.median(seconds) for name, seconds in instruments.stage_seconds.items()
        }
        report["seconds_per_pass"] = statistics.median(passes)
        report["pipeline"] = {
            "ranks": topology.pipe_parallel_size,
            "micro_batches": topology.gradient_accumulation_steps,
            "schedule": topology.pipe_schedule.value,
            "chunks": topology.pipe_chunks_per_rank,
        }
    if topology.data_parallel_size == world > 1:
        calls = list(instruments.calls)
        report["collectives_alone"] = statistics.median(alone(calls, device) for _ in range(10))
    return report


def noting(function: Callable[..., Any], begun: list[float]) -> Callable[..., Any]:
    """Return a function that notes when it is called."""

    def call(*args: Any, **options: Any) -> Any:
        begun.append(time.perf_counter())
        return function(*args, **options)

    return call


if __name__ == "__main__":
    main()
