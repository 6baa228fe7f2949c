"""Hooks: what is run around the steps without touching the loop, and what they may see of it."""

from __future__ import annotations

from typing import Protocol

from scaling.core.optimizer.optimizer import StepReport
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
        """Return what is trained: module, optimizer, data and topology."""
        ...

    @property
    def state(self) -> TrainState:
        """Return where the run stands."""
        ...

    @property
    def metrics(self) -> Metrics:
        """Return where the numbers of a step go, for a hook to add its own."""
        ...


class TrainerHook(Protocol):
    """Three points of the loop; hooks run in the order of the list, on all ranks."""

    def before_step(self, trainer: TrainerView) -> None:
        """Run before the forward pass of a step."""
        ...

    def after_step(self, trainer: TrainerView, report: StepReport) -> None:
        """Run after the optimizer's update; the report's numbers are still on the device."""
        ...

    def on_exit(self, trainer: TrainerView, error: BaseException | None) -> None:
        """Run when training ends, by an error or without."""
        ...
