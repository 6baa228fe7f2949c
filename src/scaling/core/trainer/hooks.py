"""Hooks: what an application runs around the steps without touching the loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from scaling.core.optimizer.optimizer import StepReport
    from scaling.core.trainer.trainer import Trainer


class TrainerHook(Protocol):
    """Three points of the loop; hooks run in the order of the list, on all ranks."""

    def before_step(self, trainer: Trainer) -> None:
        """Run before the forward pass of a step."""
        ...

    def after_step(self, trainer: Trainer, report: StepReport) -> None:
        """Run after the optimizer's update; the report's numbers are still on the device."""
        ...

    def on_exit(self, trainer: Trainer, error: BaseException | None) -> None:
        """Run when training ends, by an error or without."""
        ...
