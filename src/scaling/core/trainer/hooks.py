"""Hooks: code that runs around the steps without touching the loop, and its view of the trainer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from scaling.core.optimizer.optimizer import StepReport
from scaling.core.pipeline.loss import StepLoss
from scaling.core.trainer.config import TrainerConfig
from scaling.core.trainer.state import Metrics, TrainState
from scaling.core.training.learner import Learner


class TrainerView(Protocol):
    """What a hook may see of the trainer."""

    @property
    def config(self) -> TrainerConfig:
        """Return the settings of the loop."""
        ...

    @property
    def learner(self) -> Learner:
        """Return the learner: module, optimizer, data and topology."""
        ...

    @property
    def state(self) -> TrainState:
        """Return the run's counts of steps and samples."""
        ...

    @property
    def metrics(self) -> Metrics:
        """Return where the numbers of a step go, for a hook to add its own."""
        ...


class TrainerHook:
    """A program's addition to the loop. Derive from it and override the methods you need; the others do nothing.

    Hooks run in the order of their list, on all ranks. None may make the host wait for the device, except where the
    trainer has just waited: `after_log`, and everything around an evaluation or a save.
    """

    def before_step(self, trainer: TrainerView) -> None:
        """Run before the forward pass of a step."""

    def after_step(self, trainer: TrainerView, report: StepReport) -> None:
        """Run after the optimizer's update; the report's numbers are still on the device."""

    def before_evaluation(self, trainer: TrainerView) -> None:
        """Run before an evaluation; not where there is no evaluation set."""

    def after_evaluation(self, trainer: TrainerView, loss: StepLoss) -> None:
        """Run after an evaluation, with its loss and metrics, the same on all ranks; they are written afterwards."""

    def before_save(self, trainer: TrainerView) -> None:
        """Run before a checkpoint is written; changes made to the model now are in it."""

    def after_save(self, trainer: TrainerView, checkpoint: Path | None) -> None:
        """Run after a save: with the step's folder, or None where it failed or continues in the background."""

    def after_log(self, trainer: TrainerView, written: Mapping[int, Mapping[str, float]]) -> None:
        """Run after metrics were written, with those of each step since the last time.

        Metrics are read on rank 0, and on ranks that the configuration names to write or show some; elsewhere `written`
        is empty.
        """

    def on_exit(self, trainer: TrainerView, error: BaseException | None) -> None:
        """Run when training ends, with an error or without."""
