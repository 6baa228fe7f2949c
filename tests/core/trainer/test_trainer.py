"""The loop: trains, reports, evaluates, saves, resumes, and leaves when asked."""

from __future__ import annotations

import gc
import logging
import os
import re
import signal
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from scaling.core.checkpoint.resume import ChangeRules
from scaling.core.errors import CheckpointError, ConfigError, DataRefusedError, StorageError
from scaling.core.optimizer.config import AdamWConfig
from scaling.core.optimizer.optimizer import StepReport
from scaling.core.topology.layout import Axis
from scaling.core.trainer.garbage import garbage_collected
from scaling.core.trainer.hooks import TrainerHook, TrainerView
from scaling.core.trainer.state import RunIdentity
from scaling.core.trainer.trainer import MAX_FAILED_SAVES
from tests.core.trainer.regression import Points, make_trainer, weights
from tests.distributed import run_distributed
from tests.reference.worlds import connected


def saved_steps(directory: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("global_step")) for path in directory.glob("global_step*"))


def test_a_run_ends_after_its_iterations_with_falling_loss_and_a_report_of_every_step() -> None:
    trainer, metrics = make_trainer(train_iterations=30, log_interval=7, tokens_per_sample=5, clipping=0.0)
    trainer.fit()
    losses = metrics.series("training/loss")
    assert list(losses) == list(range(1, 31))
    assert losses[30] < losses[1] / 2
    assert (trainer.state.step, trainer.state.consumed_samples) == (30, 240)
    assert metrics.series("training/consumed_samples") == {step: 8 * step for step in range(1, 31)}
    assert metrics.series("training/consumed_tokens") == {step: 40 * step for step in range(1, 31)}
    assert set(metrics.series("training/learning_rate_all").values()) == {1e-2}
    assert set(metrics.series("training/ones").values()) == {1.0}
    assert all(norm > 0 for norm in metrics.series("training/global_grad_norm").values())
    for name in ("step_duration", "tokens_per_second", "peak_memory_bytes", "epochs"):
        series = metrics.series(f"training/{name}")
        assert list(series) == [7, 14, 21, 28, 30]
        assert all(value > 0 for value in series.values())
    assert not metrics.series("training/loss_scale")
    assert metrics.opened_at == 0
    assert metrics.closed


def test_without_tokens_samples_are_counted() -> None:
    trainer, metrics = make_trainer()
    trainer.fit()
    assert list(metrics.series("training/samples_per_second")) == [2, 4]
    assert not metrics.series("training/tokens_per_second")
    assert not metrics.series("training/consumed_tokens")


def evaluate(rank: int, world_size: int, sizes: dict[str, int], tokens: int | None) -> dict[int, dict[str, float]]:
    with connected(**sizes, global_batch_size=8, micro_batch_size=2) as topology:
        trainer, metrics = make_trainer(
            topology, validation=Points(21), train_iterations=4, eval_interval=2, tokens_per_sample=tokens
        )
        trainer.fit()
        found: dict[int, dict[str, float]] = {}
        for step, values in metrics.kept:
            found.setdefault(step, {}).update({k: v for k, v in values.items() if k.startswith("evaluation/")})
        return found


@pytest.mark.parametrize("sizes", [{"data": 2}, {"pipe": 2}])
def test_an_evaluation_is_the_mean_over_all_samples_in_every_layout(sizes: dict[str, int]) -> None:
    trainer, metrics = make_trainer(validation=Points(21), train_iterations=4, eval_interval=4, micro_batch_size=1)
    trainer.fit()
    points = Points(21)
    with torch.no_grad():
        layers = [layer for stage in trainer.learner.module.stages.values() for layer in stage.layers]  # type: ignore[union-attr]
        x = torch.stack([points[index][0] for index in range(21)])
        y = torch.stack([points[index][1] for index in range(21)])
        for layer in layers:
            x = layer(x)
        expected = (x.sum(-1) - y).square().mean().item()
    assert metrics.series("evaluation/loss")[4] == pytest.approx(expected, rel=1e-12)
    for found in run_distributed(evaluate, 2, sizes, 3):
        assert found[4]["evaluation/loss"] == pytest.approx(expected, rel=1e-12)
        assert found[4]["evaluation/perplexity"] == pytest.approx(torch.tensor(expected).exp().item(), rel=1e-5)
        assert found[4]["evaluation/ones"] == 1.0
        assert [step for step, values in found.items() if values] == [2, 4]


def test_an_evaluation_changes_nothing_about_the_training() -> None:
    once, twice = (make_trainer(validation=Points(21), eval_interval=interval) for interval in (None, 1))
    for trainer, _ in (once, twice):
        trainer.fit()
    assert once[1].series("training/loss") == twice[1].series("training/loss")
    assert all(torch.equal(value, weights(twice[0])[key]) for key, value in weights(once[0]).items())
    assert not once[1].series("evaluation/loss")
    assert not twice[1].series("evaluation/perplexity")  # samples are no tokens


def test_there_is_nothing_to_evaluate_without_a_validation_set() -> None:
    trainer, metrics = make_trainer(eval_interval=1)
    trainer.fit()
    assert trainer.evaluate() is None
    assert not metrics.series("evaluation/loss")


def test_a_resumed_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    whole, metrics = make_trainer(train_iterations=6)
    whole.fit()
    first, _ = make_trainer(train_iterations=3, save_dir=tmp_path)
    first.fit()
    assert saved_steps(tmp_path) == [3]
    second, resumed = make_trainer(train_iterations=6, save_dir=tmp_path, save_interval=2)
    second.fit()
    assert resumed.opened_at == 3
    assert resumed.series("training/loss") == {s: v for s, v in metrics.series("training/loss").items() if s > 3}
    assert all(torch.equal(value, weights(whole)[key]) for key, value in weights(second).items())
    assert saved_steps(tmp_path) == [3, 4, 6]


def test_a_step_is_saved_once_and_a_finished_run_not_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer, _ = make_trainer(train_iterations=4, save_dir=tmp_path, save_interval=2)
    with mock.patch.object(trainer.checkpointer, "save", wraps=trainer.checkpointer.save) as save:
        trainer.fit()
    assert [call.args[0] for call in save.call_args_list] == [2, 4]
    again, metrics = make_trainer(train_iterations=4, save_dir=tmp_path)
    with mock.patch.object(again.checkpointer, "save") as save:
        again.fit()
    assert not save.called
    assert metrics.opened_at == 4
    assert "nothing is left to train: trainer.train_iterations is 4" in caplog.text
    assert not metrics.series("training/loss")


def test_a_run_without_a_length_says_that_nothing_is_trained(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_trainer(train_iterations=None, save_dir=tmp_path)[0].fit()
    assert "nothing is trained: trainer.train_iterations is null; set it to the number of steps" in caplog.text
    assert saved_steps(tmp_path) == [0]


def test_the_last_save_can_be_left_out(tmp_path: Path) -> None:
    trainer, _ = make_trainer(train_iterations=3, save_dir=tmp_path, save_interval=2, final_save=False)
    trainer.fit()
    assert saved_steps(tmp_path) == [2]


def train_in_a_world(rank: int, world_size: int, sizes: dict[str, int], directory: Path, steps: int) -> list[float]:
    with connected(**sizes, global_batch_size=8, micro_batch_size=2) as topology:
        trainer, metrics = make_trainer(topology, train_iterations=steps, save_dir=directory)
        trainer.fit()
        return list(metrics.series("training/loss").values())


def test_a_run_may_go_on_in_another_layout(tmp_path: Path) -> None:
    whole, metrics = make_trainer(train_iterations=6)
    whole.fit()
    expected = list(metrics.series("training/loss").values())
    for steps, sizes in ((2, {"data": 2}), (4, {"pipe": 2}), (6, {"data": 4})):
        ranks = next(iter(sizes.values()))
        for losses in run_distributed(train_in_a_world, ranks, sizes, tmp_path, steps):
            assert losses == pytest.approx(expected[steps - 2 : steps], rel=1e-12)


def test_a_run_may_start_from_the_weights_of_another(tmp_path: Path) -> None:
    source, _ = make_trainer(train_iterations=3, save_dir=tmp_path)
    source.fit()
    options: dict[str, Any] = {"load_dir": tmp_path, "load_optimizer_states": False, "load_context": False}
    trainer, metrics = make_trainer(**options)
    assert trainer.resume()
    assert all(torch.equal(value, weights(source)[key]) for key, value in weights(trainer).items())
    assert (trainer.state.step, trainer.learner.optimizer.state()["updates"]) == (0, 0)
    trainer.fit()
    assert list(metrics.series("training/loss")) == [1, 2, 3, 4]


def test_a_checkpoint_that_has_to_be_there_is_missed(tmp_path: Path) -> None:
    trainer, _ = make_trainer(load_dir=tmp_path, assert_checkpoint_loaded=True)
    with pytest.raises(CheckpointError, match=r"assert_checkpoint_loaded is true; name a folder that holds one"):
        trainer.fit()
    assert not make_trainer(load_dir=tmp_path)[0].resume()


def test_a_run_is_not_resumed_as_another(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def identity(beta1: float, beta2: float) -> RunIdentity:
        rules = ChangeRules(identity=["beta1", "fingerprints"], schedule=["beta2"])
        return RunIdentity(AdamWConfig(beta1=beta1, beta2=beta2), {"data": "points"}, rules)

    make_trainer(train_iterations=1, save_dir=tmp_path, identity=identity(0.9, 0.95))[0].fit()
    other, _ = make_trainer(train_iterations=2, save_dir=tmp_path, identity=identity(0.5, 0.95))
    with pytest.raises(ConfigError, match=r"beta1: 0.5, but 0.9 in the checkpoint"):
        other.fit()
    accepted, _ = make_trainer(
        train_iterations=2, save_dir=tmp_path, identity=identity(0.5, 0.8), accept_changes=["beta1"]
    )
    with caplog.at_level(logging.WARNING):
        accepted.fit()
    assert "resuming with another setting: beta1: 0.9 in the checkpoint, 0.5 now" in caplog.text
    assert "resuming with another setting: beta2" in caplog.text


class Signals(TrainerHook):
    """A hook that asks the process to leave after a step."""

    def __init__(self, after: int, number: signal.Signals) -> None:
        self.after = after
        self.number = number

    def after_step(self, trainer: TrainerView, report: StepReport) -> None:
        if trainer.state.step == self.after:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_run_that_is_asked_to_leave_saves_first(number: signal.Signals, tmp_path: Path) -> None:
    trainer, _ = make_trainer(
        train_iterations=9, log_interval=2, save_dir=tmp_path, final_save=False, hooks=[Signals(3, number)]
    )
    trainer.fit()
    assert trainer.preempted == number.name
    assert saved_steps(tmp_path) == [3]  # whenever the ranks would have talked to each other


@pytest.mark.parametrize("saves", [True, False])
def test_a_run_that_ends_says_what_is_saved(saves: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    options: dict[str, Any] = {"save_dir": tmp_path} if saves else {}
    make_trainer(train_iterations=9, log_interval=2, hooks=[Signals(3, signal.SIGTERM)], **options)[0].fit()
    told = [record.getMessage() for record in caplog.records]
    if saves:
        assert told[0] == "asked to leave (SIGTERM) after step 3: saving"
        assert re.fullmatch(rf"step 3/9 checkpoint seconds [0-9.]+ path {tmp_path / 'global_step3'}", told[1])
        assert len(told) == 2
    else:
        assert told == ["asked to leave (SIGTERM) after step 3: nothing is saved, trainer.save_dir is null"]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_each_checkpoint_is_told_of_with_the_time_it_took(
    asynchronous: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    make_trainer(train_iterations=6, save_dir=tmp_path, save_interval=2, save_async=asynchronous)[0].fit()
    told = [message for message in caplog.messages if "checkpoint" in message]
    assert [message.partition(" seconds ")[0] for message in told] == [
        f"step {step}/6 checkpoint" for step in (2, 4, 6)
    ]


def test_the_share_of_time_in_which_the_slowest_rank_waits_for_data_is_measured() -> None:
    trainer, metrics = make_trainer(train_iterations=6, log_interval=2)
    trainer.fit()
    waits = metrics.series("training/data_wait_fraction")
    assert list(waits) == [2, 4, 6]
    assert all(0 < share <= 1 for share in waits.values())


def leave_together(rank: int, world_size: int, directory: Path) -> tuple[int, str | None]:
    with connected(data=2, global_batch_size=8, micro_batch_size=2) as topology:
        hooks = [Signals(2, signal.SIGTERM)] if topology.index(Axis.DATA) == 1 else []
        trainer, _ = make_trainer(topology, train_iterations=9, log_interval=1, save_dir=directory, hooks=hooks)
        trainer.fit()
        return trainer.state.step, trainer.preempted


def test_one_rank_that_is_asked_takes_the_others_along(tmp_path: Path) -> None:
    found = run_distributed(leave_together, 2, tmp_path)
    assert found == [(2, "a signal to another rank"), (2, "SIGTERM")]
    assert saved_steps(tmp_path) == [2]


def test_gradients_that_stay_not_finite_end_the_run() -> None:
    trainer, metrics = make_trainer(
        training=Points(8, poison=3), train_iterations=20, log_interval=1, max_consecutive_nonfinite_steps=3
    )
    before = weights(trainer)
    with pytest.raises(DataRefusedError, match=r"the gradients of 4 steps in a row, up to step 4, were not finite"):
        trainer.fit()
    assert all(torch.equal(value, before[key]) for key, value in weights(trainer).items())
    assert list(metrics.series("training/loss")) == [1, 2, 3, 4]


def test_single_steps_that_are_not_finite_are_skipped() -> None:
    trainer, metrics = make_trainer(
        training=Points(32, poison=3), train_iterations=8, log_interval=1, max_consecutive_nonfinite_steps=1
    )
    trainer.fit()  # one step of four has the poisoned point
    losses = metrics.series("training/loss")
    assert sum(value != value for value in losses.values()) == 2
    assert all(value.isfinite().all() for value in weights(trainer).values())
    assert trainer.learner.optimizer.state()["updates"] == 6


def test_a_save_that_fails_does_not_end_the_run_unless_it_is_the_last(tmp_path: Path) -> None:
    trainer, metrics = make_trainer(train_iterations=5, log_interval=1, save_dir=tmp_path, save_interval=1)
    real, calls = trainer.checkpointer.save, []

    def sometimes(step: int, *arguments: Any, **options: Any) -> Any:
        calls.append(step)
        if step in (1, 2):
            raise StorageError("the disk is full")
        return real(step, *arguments, **options)

    with mock.patch.object(trainer.checkpointer, "save", sometimes):
        trainer.fit()
    assert calls == [1, 2, 3, 4, 5]
    assert saved_steps(tmp_path) == [3, 4, 5]

    trainer, metrics = make_trainer(train_iterations=2, save_dir=tmp_path / "other", save_interval=2)
    full = mock.Mock(side_effect=StorageError("the disk is full"))
    with mock.patch.object(trainer.checkpointer, "save", full), pytest.raises(StorageError, match="the disk is full"):
        trainer.fit()
    assert list(metrics.series("training/loss")) == [1, 2]


def test_a_disk_that_stays_full_ends_the_run(tmp_path: Path) -> None:
    trainer, _ = make_trainer(train_iterations=50, save_dir=tmp_path, save_interval=1)
    attempts: list[int] = []

    def fail(step: int, *arguments: Any, **options: Any) -> None:
        attempts.append(step)
        trainer.checkpointer.failures += 1
        raise StorageError("the disk is full")

    with mock.patch.object(trainer.checkpointer, "save", fail), pytest.raises(StorageError):
        trainer.fit()
    assert len(attempts) == MAX_FAILED_SAVES


def test_the_streams_of_a_step_depend_on_its_number_alone() -> None:
    def drawn(first: int) -> list[float]:
        trainer, _ = make_trainer()
        trainer.state.step = first
        trainer.step()
        with trainer.learner.topology.rng.stream("sharded"):
            return list(torch.rand(3).tolist())

    assert drawn(4) == drawn(4) != drawn(5)


@pytest.mark.parametrize("interval", [0, 3])
def test_garbage_is_collected_when_the_trainer_says(interval: int) -> None:
    before, collections = gc.isenabled(), []

    def note(phase: str, information: dict[str, int]) -> None:
        collections.append((phase, information["generation"]))

    with garbage_collected(interval) as collect:
        assert gc.isenabled() is (interval == 0)
        gc.callbacks.append(note)
        try:
            for step in range(1, 8):
                collect(step)
        finally:
            gc.callbacks.remove(note)
    assert gc.isenabled() is before
    if interval:
        assert collections.count(("start", 1)) == 2
