"""Hooks: what a program adds to the loop is called where it should be, on what it may see."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from scaling.core.errors import StorageError
from scaling.core.optimizer.optimizer import StepReport
from scaling.core.pipeline.loss import StepLoss
from scaling.core.trainer.hooks import TrainerHook, TrainerView
from tests.core.trainer.regression import Points, make_trainer


class Notes(TrainerHook):
    """A hook that writes down when it is called."""

    def __init__(self, name: str, notes: list[str], *, fail_at: int | None = None) -> None:
        self.name, self.notes, self.fail_at = name, notes, fail_at

    def before_step(self, trainer: TrainerView) -> None:
        self.notes.append(f"{self.name} before {trainer.state.step + 1}")
        if trainer.state.step + 1 == self.fail_at:
            raise ZeroDivisionError

    def after_step(self, trainer: TrainerView, report: StepReport) -> None:
        self.notes.append(f"{self.name} after {trainer.state.step}")
        assert report.global_grad_norm.dim() == 0

    def on_exit(self, trainer: TrainerView, error: BaseException | None) -> None:
        self.notes.append(f"{self.name} exit {type(error).__name__}")


def test_hooks_run_around_every_step_in_their_order_and_at_the_end() -> None:
    notes: list[str] = []
    trainer, _ = make_trainer(train_iterations=2, hooks=[Notes("a", notes), Notes("b", notes)])
    trainer.fit()
    around = [f"{name} {when} {step}" for step in (1, 2) for when in ("before", "after") for name in "ab"]
    assert notes == [*around, "a exit NoneType", "b exit NoneType"]


class Events(TrainerHook):
    """A hook that writes down what happens besides steps."""

    def __init__(self) -> None:
        self.events: list[tuple[str, object]] = []

    def before_evaluation(self, trainer: TrainerView) -> None:
        self.events.append(("before evaluation", trainer.state.step))

    def after_evaluation(self, trainer: TrainerView, loss: StepLoss) -> None:
        trainer.metrics.add(trainer.state.step, {"evaluation/twice": 2 * loss.loss})
        self.events.append(("after evaluation", float(loss.loss)))

    def before_save(self, trainer: TrainerView) -> None:
        self.events.append(("before save", trainer.state.step))

    def after_save(self, trainer: TrainerView, checkpoint: Path | None) -> None:
        self.events.append(("after save", checkpoint))

    def after_log(self, trainer: TrainerView, written: Mapping[int, Mapping[str, float]]) -> None:
        self.events.append(("log", written))


def test_hooks_run_around_evaluations_saves_and_logs(tmp_path: Path) -> None:
    hook = Events()
    trainer, metrics = make_trainer(
        train_iterations=2, eval_interval=2, save_dir=tmp_path, validation=Points(5), hooks=[hook]
    )
    trainer.fit()
    names = ["log", "before evaluation", "after evaluation", "log", "before save", "after save"]
    assert [name for name, _ in hook.events] == names
    steps, began_at, loss, evaluation, saved_at, folder = (value for _, value in hook.events)
    assert isinstance(steps, dict)
    assert {step: row["training/loss"] for step, row in steps.items()} == metrics.series("training/loss")
    assert (began_at, saved_at, folder) == (2, 2, tmp_path / "global_step2")
    assert isinstance(loss, float)
    assert metrics.series("evaluation/twice") == {2: pytest.approx(2 * loss)}
    assert isinstance(evaluation, dict)
    assert evaluation[2]["evaluation/loss"] == loss
    trainer.save()  # this step is saved already
    assert len(hook.events) == len(names)


def test_a_save_that_fails_is_told_to_hooks_without_a_folder(tmp_path: Path) -> None:
    hook = Events()
    trainer, _ = make_trainer(train_iterations=2, save_interval=1, save_dir=tmp_path, hooks=[hook])
    save, failing = trainer.checkpointer.save, [StorageError("full")]

    def sometimes(*arguments: Any, **options: Any) -> Path | None:
        if failing:
            raise failing.pop()
        return save(*arguments, **options)

    with mock.patch.object(trainer.checkpointer, "save", sometimes):
        trainer.fit()
    assert [value for name, value in hook.events if name == "after save"] == [None, tmp_path / "global_step2"]


def test_an_error_reaches_the_hooks_and_the_metrics_are_written() -> None:
    notes: list[str] = []
    trainer, metrics = make_trainer(train_iterations=9, log_interval=9, hooks=[Notes("a", notes, fail_at=3)])
    with pytest.raises(ZeroDivisionError):
        trainer.fit()
    assert notes[-1] == "a exit ZeroDivisionError"
    assert list(metrics.series("training/loss")) == [1, 2]
    assert metrics.closed
