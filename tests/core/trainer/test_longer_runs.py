"""A run that is made longer than its learning rate lasts is told so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from scaling.core.optimizer.lr_schedule import LearningRateSchedulerConfig
from tests.core.trainer.regression import make_trainer


def test_a_run_made_longer_than_its_decay_says_that_steps_change_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_trainer(train_iterations=2, save_dir=tmp_path)[0].fit()
    trainer, _ = make_trainer(train_iterations=3, save_dir=tmp_path)
    decay = LearningRateSchedulerConfig.from_dict({"learning_rate_decay_iters": 2})
    optimizer = trainer.learner.optimizer
    optimizer.groups = tuple(replace(group, learning_rate_scheduler=decay) for group in optimizer.groups)
    trainer.fit()
    assert "group all: the learning rate is 0 from step 2 (learning_rate_decay_iters) on" in caplog.text
    assert "the last 1 steps change nothing" in caplog.text
