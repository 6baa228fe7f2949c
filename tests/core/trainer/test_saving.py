"""Saves in the background: none is lost to an error of the training, and a disk that stays full ends the run."""

from __future__ import annotations

import logging
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from scaling.core import faults
from scaling.core.checkpoint import save as saving
from scaling.core.checkpoint.checkpointer import Checkpointer
from scaling.core.checkpoint.share import write_share
from scaling.core.errors import DataRefusedError, StorageError
from scaling.core.trainer.trainer import MAX_FAILED_SAVES, Trainer
from tests.core.trainer.regression import Metrics, Points, make_trainer
from tests.core.trainer.test_trainer import Signals


def in_background(directory: Path, **options: Any) -> tuple[Trainer, Metrics]:
    trainer, metrics = make_trainer(save_dir=directory, log_interval=1, **options)
    trainer.checkpointer = Checkpointer(directory, asynchronous=True)
    return trainer, metrics


@pytest.fixture(autouse=True)
def fresh_faults() -> None:
    faults.forget_passages()


def test_a_disk_that_stays_full_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCALING_FAULT", "save.mid_data:*=enospc")
    trainer, _ = in_background(tmp_path, train_iterations=50, save_interval=1)
    with pytest.raises(StorageError, match=f"step {MAX_FAILED_SAVES} was not saved: .*No space left") as caught:
        trainer.fit()
    assert "the last of 5 saves in a row that failed, so the run ends; earlier checkpoints are" in str(caught.value)
    assert "tries again" not in str(caught.value)
    assert trainer.state.step == MAX_FAILED_SAVES + 1


def test_a_failure_is_reported_and_made_up_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SCALING_FAULT", "save.mid_data:1=enospc")
    trainer, metrics = in_background(tmp_path, train_iterations=3, save_interval=1)
    trainer.fit()
    assert "a checkpoint was not written, training goes on: step 1 was not saved" in caplog.text
    assert "earlier checkpoints are untouched; the next save tries again" in caplog.text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["global_step2", "global_step3", "latest"]
    assert list(metrics.series("training/loss")) == [1, 2, 3]


def test_a_failure_of_the_last_one_ends_the_run_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCALING_FAULT", "save.mid_data:2=enospc")
    trainer, _ = in_background(tmp_path, train_iterations=2, save_interval=1)
    with pytest.raises(StorageError, match="step 2 was not saved") as caught:
        trainer.fit()
    assert str(caught.value).endswith("; earlier checkpoints are untouched")


def test_only_a_save_that_is_due_is_promised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SCALING_FAULT", "save.mid_data:*=enospc")
    options: dict[str, Any] = {"train_iterations": 5, "save_interval": 2, "final_save": False, "log_interval": 1}
    make_trainer(save_dir=tmp_path, **options)[0].fit()
    first, last = (record.getMessage() for record in caplog.records if record.levelno == logging.ERROR)
    assert "step 2 was not saved" in first
    assert first.endswith("the next save tries again")
    assert "step 4 was not saved" in last
    assert last.endswith("no other save is due")


@pytest.mark.parametrize("asynchronous", [False, True])
def test_who_is_asked_to_leave_with_a_full_disk_is_promised_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asynchronous: bool
) -> None:
    monkeypatch.setenv("SCALING_FAULT", "save.mid_data:*=enospc")
    trainer, _ = make_trainer(save_dir=tmp_path, log_interval=1, hooks=[Signals(1, signal.SIGTERM)])
    trainer.checkpointer = Checkpointer(tmp_path, asynchronous=asynchronous)
    with pytest.raises(StorageError, match="step 1 was not saved") as caught:
        trainer.fit()
    assert str(caught.value).endswith("; earlier checkpoints are untouched")


def test_an_error_of_the_training_waits_for_the_checkpoint_that_is_being_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*arguments: Any) -> Any:
        time.sleep(0.3)
        return write_share(*arguments)

    monkeypatch.setattr(saving, "write_share", slow)
    options = {"max_consecutive_nonfinite_steps": 1, "train_iterations": 9, "save_interval": 2}
    trainer, _ = in_background(tmp_path, training=Points(8, poison=3), **options)
    with pytest.raises(DataRefusedError, match="up to step 2"):
        trainer.fit()
    assert not list(tmp_path.iterdir())  # not even step 2 was begun

    trainer, _ = in_background(tmp_path, training=Points(8, poison=3), **{**options, "save_interval": 1})
    with pytest.raises(DataRefusedError, match="up to step 2"):
        trainer.fit()
    assert (tmp_path / "global_step1" / "manifest.json").exists()
