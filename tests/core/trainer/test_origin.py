"""What a run starts from, and how much of it: its own checkpoint in full, another's as far as asked for."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from scaling.core.checkpoint.checkpointer import Checkpointer
from scaling.core.checkpoint.folders import drop_optimizer
from scaling.core.errors import CheckpointError, ConfigError
from tests.core.trainer.regression import make_trainer, weights


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """The checkpoints of another run, of steps 2 and 3."""
    make_trainer(train_iterations=3, save_dir=tmp_path / "base", save_interval=2)[0].fit()
    return tmp_path / "base"


def test_an_interrupted_fine_tuning_goes_on_instead_of_starting_again(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options: dict[str, Any] = {
        "load_dir": base,
        "load_context": False,
        "load_optimizer_states": False,
        "ignore_keys_in_checkpoint": [r"^layers\.1\."],
        "allowed_missing_keys_in_checkpoint": [r"^layers\.1\."],
    }
    whole, metrics = make_trainer(train_iterations=4, save_dir=tmp_path / "whole", **options)
    whole.fit()
    make_trainer(train_iterations=2, save_dir=tmp_path / "tuned", **options)[0].fit()
    again, resumed = make_trainer(train_iterations=4, save_dir=tmp_path / "tuned", **options)
    with caplog.at_level(logging.INFO):
        again.fit()
    assert resumed.opened_at == 2
    assert resumed.series("training/loss") == {s: v for s, v in metrics.series("training/loss").items() if s > 2}
    assert all(torch.equal(value, weights(whole)[key]) for key, value in weights(again).items())
    assert again.optimizer.state() == whole.optimizer.state()
    assert f"trainer.load_dir ({base}) is not used" in caplog.text
    assert "trainer.load_context, trainer.load_optimizer_states, trainer.ignore_keys_in_checkpoint:" in caplog.text


def test_an_ignored_parameter_loses_its_moments_too(base: Path, caplog: pytest.LogCaptureFixture) -> None:
    pattern = [r"^layers\.1\."]
    trainer, _ = make_trainer(
        load_dir=base, ignore_keys_in_checkpoint=pattern, allowed_missing_keys_in_checkpoint=pattern
    )
    fresh = weights(trainer)
    assert trainer.resume()
    names = "layers.1.bias, layers.1.weight"
    assert f"2 parameters are not in the checkpoint and keep their initial values: {names}" in caplog.text
    assert f"2 parameters are in the checkpoint and were not read: {names}" in caplog.text
    assert all(torch.equal(value, fresh[key]) == key.startswith("layers.1.") for key, value in weights(trainer).items())
    for tensor in trainer.optimizer.global_tensors():
        assert all(view.any() == (".layers.1." not in tensor.key) for _, view in tensor.parts), tensor.key


def test_going_back_within_save_dir_is_refused_rather_than_passed_over(base: Path, tmp_path: Path) -> None:
    back, _ = make_trainer(train_iterations=5, save_dir=base, load_dir=base / "global_step2")
    with pytest.raises(ConfigError, match=r"trainer.load_dir: names step 2 of save_dir itself.* which is step 3"):
        back.fit()
    on, metrics = make_trainer(train_iterations=5, save_dir=base, load_dir=base / "global_step3")
    on.fit()
    assert metrics.opened_at == 3
    other, metrics = make_trainer(train_iterations=5, save_dir=tmp_path / "other", load_dir=base / "global_step2")
    other.fit()
    assert metrics.opened_at == 2


def test_a_place_without_checkpoints_is_pointed_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer, _ = make_trainer(load_dir=tmp_path / "mistyped", save_dir=tmp_path / "own")
    with caplog.at_level(logging.WARNING):
        assert not trainer.resume()
    assert f"no checkpoint in trainer.load_dir ({tmp_path / 'mistyped'}): starting from random weights" in caplog.text


def test_an_own_checkpoint_without_optimizer_states_has_to_be_asked_for(base: Path) -> None:
    shutil.rmtree(base / "global_step3")
    drop_optimizer(base / "global_step2")
    with pytest.raises(CheckpointError, match=r"set trainer\.load_optimizer_states to false"):
        make_trainer(train_iterations=5, save_dir=base)[0].fit()
    trainer, metrics = make_trainer(train_iterations=5, save_dir=base, load_optimizer_states=False)
    trainer.fit()
    assert (metrics.opened_at, trainer.optimizer.state()["updates"]) == (2, 3)


def test_weights_without_a_history_are_started_from(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source, _ = make_trainer(load_dir=base)
    source.resume()
    Checkpointer(tmp_path / "imported").save(7, source.module.global_tensors(), {})
    options: dict[str, Any] = {"load_dir": tmp_path / "imported"}
    with pytest.raises(CheckpointError, match=r"set trainer\.load_context and trainer\.load_optimizer_states to false"):
        make_trainer(**options)[0].fit()
    with pytest.raises(CheckpointError, match=r"set trainer\.load_context to false"):
        make_trainer(load_optimizer_states=False, **options)[0].fit()
    trainer, metrics = make_trainer(load_optimizer_states=False, load_context=False, **options)
    with caplog.at_level(logging.WARNING):
        trainer.fit()
    assert metrics.opened_at == 0
    assert caplog.text.count("setting") == 0
