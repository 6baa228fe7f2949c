"""Learner: a recipe in one layout, with everything that a step needs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import final

from scaling.core import faults
from scaling.core.boxes import GlobalTensor
from scaling.core.optimizer.groups import assign
from scaling.core.optimizer.optimizer import Optimizer, StepReport
from scaling.core.pipeline.engine import untimed
from scaling.core.pipeline.loss import StepLoss
from scaling.core.pipeline.module import ParallelModule
from scaling.core.topology.config import TopologyConfig
from scaling.core.topology.rng import derive_seed
from scaling.core.topology.topology import Topology
from scaling.core.training.data import TrainingData
from scaling.core.training.loading import Loading
from scaling.core.training.recipe import Recipe


@final
class Learner:
    """One rank's part of what a recipe describes: model, optimizer, loss, data and random streams.

    The trainer drives a learner to the end of a run; `verify-layout` watches one in each of two layouts. Every method
    is collective: all ranks.
    """

    def __init__(
        self, recipe: Recipe, config: TopologyConfig, topology: Topology, *, loading: Loading | None = None
    ) -> None:
        self.recipe = recipe
        self.topology = topology
        self.module = ParallelModule(recipe.layers(topology), topology, config, seed=recipe.seed)
        self.module.follow_base()  # with initial values for now; again once those of a base are loaded
        self.optimizer = Optimizer(
            recipe.optimizer,
            assign(self.module.parameters_with_meta(), recipe.groups, topology, allow_missing=recipe.allow_missing),
            topology,
            module=self.module,
            usual_weight=recipe.usual_weight,
        )
        self.trained = {parameter for group in self.optimizer.groups for parameter, _ in group.parameters}
        """This rank's parameters that are in a group; the others are frozen."""
        self.loss_function = recipe.loss(topology)
        self.data = TrainingData(
            recipe.training,
            recipe.evaluation,
            seed=recipe.seed,
            batch=config,
            topology=topology,
            reads=self.module.first or self.module.last,
            loading=loading or Loading(),
        )
        self.optimizer_timer: Callable[[], AbstractContextManager[None]] = untimed
        """Times each step of the optimizer, and the gradient sums that the backward passes have left to it."""

    @property
    def samples_per_step(self) -> int:
        """Return the samples that all ranks together consume in one step."""
        return self.data.geometry.global_batch_size

    def seek(self, consumed_samples: int) -> None:
        """Continue with the global batch that follows `consumed_samples` samples."""
        self.data.seek(consumed_samples)

    def step(self, step: int) -> tuple[StepLoss, StepReport]:
        """Train on the next global batch. `step` counts from 1. The host waits for nothing."""
        faults.point("step.before_forward")
        self._seed_streams(step)
        loss = self.module.train_step(
            self.data.training, self.loss_function, gradient_scale=self.optimizer.gradient_scale
        )
        faults.point("step.after_backward")
        with self.optimizer_timer():
            report = self.optimizer.step(step, weight=loss.weight)
        faults.point("step.after_optimizer")
        return loss, report

    def training_loss(self, step: int) -> StepLoss:
        """Return the loss that `step` would report for the next global batch, dropout included; nothing is learnt.

        Terms that a loss function adds only where gradients are wanted are not included.
        """
        self._seed_streams(step)
        return self.module.eval_step(self.data.training, self.loss_function, dropout=True)

    def evaluate(self, *, limit: int | None = None) -> StepLoss | None:
        """Return the loss over the evaluation set, every sample counted once in every layout; None without one.

        `limit` is the largest number of global batches. None: the whole set.
        """
        steps = self.data.evaluation_steps(limit)
        if steps == 0:
            return None
        total, batches = StepLoss(self.topology), self.data.evaluation(limit)
        for _ in range(steps):
            faults.point("eval.batch")
            total.merge(self.module.eval_step(batches, self.loss_function))
        return total

    def weights(self) -> Iterator[GlobalTensor]:
        """Yield this rank's parts of the weights that a checkpoint holds: on a base only the trained ones, else all.

        Persistent buffers, which change in training as weights do, are included.
        """
        return self.module.global_tensors(self.trained if self.recipe.on_base else None)

    def global_tensors(self) -> Iterator[GlobalTensor]:
        """Yield this rank's parts of everything a checkpoint holds: weights, masters and moments."""
        return itertools.chain(self.weights(), self.optimizer.global_tensors())

    def close(self) -> None:
        """Stop the data workers and detach from the parameters."""
        self.data.close()
        self.optimizer.close()

    def _seed_streams(self, step: int) -> None:
        """Seed the random streams of a step from its number and the seed alone, so that they have no state to save."""
        self.topology.rng.seed(derive_seed(self.recipe.seed, "step", step))
