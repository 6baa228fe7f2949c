"""What is not finite has a consequence: losses, gradients, weights, evaluations, a loss scale at its floor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from scaling.core.errors import DataRefusedError
from scaling.core.optimizer.config import AdamWConfig, LossScalerConfig, vanishing_constants
from scaling.core.optimizer.loss_scaler import LossScaler
from scaling.core.optimizer.optimizer import StepReport
from scaling.core.trainer.hooks import TrainerHook, TrainerView
from tests.core.trainer.regression import Points, make_trainer
from tests.distributed import run_distributed
from tests.reference.worlds import connected


class Spoil(TrainerHook):
    """Makes one weight, or one moment, of the last tensor nan before step 3."""

    def __init__(self, name: str) -> None:
        self.name = name

    def before_step(self, trainer: TrainerView) -> None:
        if trainer.state.step == 2:
            for tensor in trainer.learner.global_tensors():
                if self.name in tensor.key:
                    for _, part in tensor.parts:
                        part.flatten()[0] = torch.nan


def run_spoilt(name: str, **options: Any) -> None:
    trainer, _ = make_trainer(hooks=[Spoil(name)], **options)
    with pytest.raises(DataRefusedError, match=r"not finite: .*the run ends at step \d, which is not saved") as caught:
        trainer.fit()
    assert name in str(caught.value)


@pytest.mark.parametrize("name", ["optimizer.exp_avg_sq.layers.1.weight", "layers.1.bias"])
def test_weights_and_moments_that_are_not_finite_are_not_saved(tmp_path: Path, name: str) -> None:
    run_spoilt(name, save_dir=tmp_path, save_interval=1)
    assert (tmp_path / "latest").read_text() == "global_step2"


def test_they_end_a_run_that_saves_nothing_too() -> None:
    run_spoilt("layers.0.weight", train_iterations=3)


def spoilt_on_one_rank(rank: int, world_size: int) -> str:
    with connected(pipe=2, global_batch_size=8, micro_batch_size=2) as topology:
        name = "optimizer.exp_avg.layers.1.bias"  # of the last stage only
        trainer, _ = make_trainer(topology, hooks=[Spoil(name)], train_iterations=3)
        with pytest.raises(DataRefusedError) as caught:
            trainer.fit()
        return str(caught.value)


def test_all_ranks_say_the_same() -> None:
    messages = run_distributed(spoilt_on_one_rank, 2)
    assert "layers.1.bias" in messages[0]
    assert messages[0] == messages[1]


def test_a_run_whose_last_step_was_not_finite_does_not_end_well(tmp_path: Path) -> None:
    trainer, _ = make_trainer(training=Points(8, poison=3), save_dir=tmp_path, train_iterations=2, log_interval=1)
    with pytest.raises(DataRefusedError, match="the gradients were not finite in step 2, and the run has ended"):
        trainer.fit()
    assert (tmp_path / "latest").read_text() == "global_step2"  # with the weights of the last step that was finite


@pytest.mark.parametrize(("streaks", "what"), [((2.0, 0.0), "the gradients were"), ((0.0, 1.0), "the loss was")])
def test_either_of_gradients_and_loss_is_kept_for_the_end_and_forgotten_after_a_good_step(
    streaks: tuple[float, float], what: str
) -> None:
    watch = make_trainer()[0]._finite
    watch.judge(*streaks, step=7)
    with pytest.raises(DataRefusedError, match=f"^{what} not finite in step 7, and the run has ended with that"):
        watch.require_good_end(7)
    watch.judge(0.0, 0.0, step=8)
    watch.require_good_end(8)


class BadLoss(TrainerHook):
    """Lets the first step look as if its loss alone was not finite."""

    def after_step(self, trainer: Any, report: StepReport) -> None:
        if trainer.state.step == 1:
            trainer._finite.streaks += torch.tensor([0.0, 1.0])


def test_a_loss_that_is_not_finite_is_not_taken_for_gradients() -> None:
    trainer, _ = make_trainer(hooks=[BadLoss()], train_iterations=1, log_interval=1)
    with pytest.raises(DataRefusedError, match=r"^the loss was not finite in step 1, and"):
        trainer.fit()


def test_an_evaluation_that_is_not_finite_is_said_and_does_not_end_well(caplog: pytest.LogCaptureFixture) -> None:
    trainer, _ = make_trainer(validation=Points(21, poison=3), train_iterations=2, eval_interval=1)
    with pytest.raises(DataRefusedError, match="the evaluation loss is nan at step 2"):
        trainer.fit()
    assert "the evaluation loss is nan at step 1 although the weights are finite" in caplog.text


@pytest.mark.parametrize(("scale", "counted"), [(4.0, 0.0), (1.0, 1.0)])
def test_an_overflow_counts_once_the_loss_scale_is_at_its_floor(scale: float, counted: float) -> None:
    trainer, _ = make_trainer()
    config = LossScalerConfig(enable=True, initial_scale=scale)
    watch = trainer._finite
    watch._scaler = LossScaler(config, torch.device("cpu"), enabled=True)
    one = torch.ones((), dtype=torch.float64)
    for _ in range(3):
        watch.note(one, StepReport(one, one, scale * one, {}))
    assert watch.streaks.tolist() == [3 * counted, 0.0]
    watch.note(one / 0, StepReport(one, 0 * one, scale * one, {}))
    assert watch.streaks.tolist() == [0.0, 1.0]
    with pytest.raises(DataRefusedError, match=r"although optimizer\.loss_scaler\.min_scale \(1\) was reached"):
        watch.judge(6.0, 0.0, step=9)
    with pytest.raises(DataRefusedError, match="the losses of 6 steps in a row"):
        watch.judge(0.0, 6.0, step=9)


def test_a_constant_that_is_zero_in_the_precision_of_the_weights_is_refused() -> None:
    for eps, is_zero in ((1e-50, True), (1e-46, True), (1e-40, False), (1e-8, False)):
        found = list(vanishing_constants(AdamWConfig(eps=eps), precision="float32"))
        assert [problem.path for problem in found] == ["optimizer.eps"] * is_zero
    assert not list(vanishing_constants(AdamWConfig(eps=1e-50), precision="float64"))


def test_a_step_of_more_samples_than_there_are_is_said(caplog: pytest.LogCaptureFixture) -> None:
    make_trainer(training=Points(4), train_iterations=1)[0].fit()
    assert "a step goes through the training data 2 times" in caplog.text
    assert "topology.global_batch_size is 8" in caplog.text
