"""What a run starts from, and how much of it: its own checkpoint in full, another's as far as asked for."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from scaling.core.checkpoint import manifest as manifests
from scaling.core.checkpoint.checkpointer import Checkpointer
from scaling.core.checkpoint.folders import drop_optimizer
from scaling.core.checkpoint.verify import read_manifest
from scaling.core.errors import CheckpointError, ConfigError
from tests.core.trainer.regression import make_trainer, weights


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """The checkpoints of another run, of steps 2 and 3."""
    make_trainer(train_iterations=3, save_dir=tmp_path / "base", save_interval=2)[0].fit()
    return tmp_path / "base"


def rewrite(folder: Path, changes: Mapping[str, Any]) -> None:
    """Change scalars of a checkpoint, None to remove one, and let its own digest agree."""
    manifest = read_manifest(folder)
    changed = {**manifest.scalars, **changes}
    scalars = {name: value for name, value in changed.items() if value is not None}
    (folder / manifests.FILE_NAME).write_bytes(replace(manifest, scalars=scalars).encode())


GOOD_SCALER = {"scale": 2.0, "hysteresis": 1, "clean_steps": 0}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"trainer": {"step": -3, "consumed_samples": 24}}, "trainer.step is -3, not a whole number"),
        ({"trainer": {"step": 5, "consumed_samples": 24}}, "trainer.step is 5, but it is the checkpoint of step 3"),
        ({"trainer": {"step": 3.0, "consumed_samples": 24}}, "trainer.step is 3.0, not a whole number"),
        ({"trainer": {"step": True, "consumed_samples": 24}}, "trainer.step is True, not a whole number"),
        ({"trainer": {"step": 3}}, "trainer.consumed_samples is None, not a whole number"),
        ({"trainer": {"step": 3, "consumed_samples": "24"}}, "trainer.consumed_samples is '24', not a whole number"),
        ({"trainer": {"step": 3, "consumed_samples": -1}}, "trainer.consumed_samples is -1, not a whole number"),
        ({"trainer": {"step": 3, "consumed_samples": 10**30}}, f"trainer.consumed_samples is {10**30}, not a"),
        ({"trainer": [3, 24]}, "trainer is [3, 24], not a table"),
        ({"trainer": None}, "it lacks the numbers of steps and samples (imported checkpoints do)"),
        ({"optimizer": None}, "it lacks the state of the optimizer (imported checkpoints do)"),
        ({"optimizer": "x"}, "optimizer is 'x', not a table"),
        ({"optimizer": {"updates": -1, "loss_scaler": {}}}, "optimizer.updates is -1, not a whole number"),
        ({"optimizer": {"updates": 3}}, "optimizer.loss_scaler is None, not a table"),
        ({"optimizer": {"updates": 3, "loss_scaler": {**GOOD_SCALER, "scale": 0}}}, "optimizer.loss_scaler.scale is 0"),
        ({"config": "x"}, "its configuration is 'x', not a table of settings"),
    ],
    ids=str,
)
@pytest.mark.parametrize("setting", ["save_dir", "load_dir"])
def test_a_checkpoint_whose_numbers_no_trainer_wrote_is_passed_over(
    base: Path, changes: dict[str, Any], reason: str, setting: str, caplog: pytest.LogCaptureFixture
) -> None:
    rewrite(base / "global_step3", changes)
    options: dict[str, Any] = {setting: base}
    trainer, _ = make_trainer(**options)
    assert trainer.resume()
    assert (trainer.state.step, trainer.state.consumed_samples) == (2, 16)
    assert f"rejected the checkpoint {base / 'global_step3'}: {reason}" in caplog.text


def test_samples_need_not_follow_from_the_steps(base: Path) -> None:
    rewrite(base / "global_step3", {"trainer": {"step": 3, "consumed_samples": 30}})
    trainer, _ = make_trainer(save_dir=base)
    assert trainer.resume()
    assert (trainer.state.step, trainer.state.consumed_samples) == (3, 30)


def test_numbers_that_are_not_taken_over_may_be_anything(base: Path, caplog: pytest.LogCaptureFixture) -> None:
    rewrite(base / "global_step3", {"trainer": {"step": "many"}, "optimizer": 1})
    trainer, _ = make_trainer(load_dir=base, load_context=False, load_optimizer_states=False)
    with caplog.at_level(logging.INFO):
        assert trainer.resume()
    assert trainer.state.step == 0
    assert f"resumed from {base / 'global_step3'}" in caplog.text


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
    assert again.learner.optimizer.state() == whole.learner.optimizer.state()
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
    (told,) = (record.getMessage() for record in caplog.records if "parameters" in record.getMessage())
    assert told == f"2 parameters are ignored in the checkpoint and keep their initial values: {names}"
    assert all(torch.equal(value, fresh[key]) == key.startswith("layers.1.") for key, value in weights(trainer).items())
    for tensor in trainer.learner.optimizer.global_tensors():
        assert all(view.any() == (".layers.1." not in tensor.key) for _, view in tensor.parts), tensor.key


def test_patterns_that_match_nothing_are_pointed_out(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options: dict[str, Any] = {
        "load_dir": base,
        "allowed_missing_keys_in_checkpoint": [r"^layers\.1\.", r"layer\.1"],
        "allowed_unexpected_keys_in_checkpoint": ["adapter"],
        "ignore_keys_in_checkpoint": [r"^layers\.1\.bias", r"exp_avg\.layers\.1"],
    }
    make_trainer(save_dir=tmp_path / "own", **options)[0].fit()
    told = [record.getMessage() for record in caplog.records if "matches" in record.getMessage()]
    nothing = "no parameter of the model or the checkpoint matches"
    assert told == [
        rf"trainer.allowed_missing_keys_in_checkpoint: {nothing} 'layer\.1'",
        f"trainer.allowed_unexpected_keys_in_checkpoint: {nothing} 'adapter'",
    ]
    caplog.clear()
    make_trainer(save_dir=tmp_path / "own", **options)[0].fit()
    assert "matches" not in caplog.text  # its own checkpoint need not show what they were for


def test_accepted_changes_of_no_setting_are_pointed_out(base: Path, caplog: pytest.LogCaptureFixture) -> None:
    accepted = ["beta1", "loss_scaler", "loss_scaler.*", "beta3", "loss_scaler.scale"]
    make_trainer(save_dir=base, accept_changes=accepted)[0].fit()
    (told,) = (record.getMessage() for record in caplog.records if "accept_changes" in record.getMessage())
    assert told.endswith("there is no such setting, neither now nor in the checkpoint: beta3, loss_scaler.scale")


@pytest.mark.slow
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


def test_a_checkpoint_that_nothing_names_is_not_asked_for() -> None:
    """The predecessor asserts by default; a configuration that says so and names no folder starts from nothing."""
    trainer, _ = make_trainer(assert_checkpoint_loaded=True)
    assert not trainer.resume()


def test_a_run_that_loads_from_where_it_saves_is_nothing_to_point_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options: dict[str, Any] = {"load_dir": tmp_path / "own", "save_dir": tmp_path / "own", "train_iterations": 1}
    trainer, _ = make_trainer(**options)
    with caplog.at_level(logging.WARNING):
        trainer.fit()
    assert caplog.text == ""
    again, _ = make_trainer(**options)
    with caplog.at_level(logging.INFO):
        assert again.resume()
    assert "not used" not in caplog.text  # it is the folder that the run goes on from


def test_an_own_checkpoint_without_optimizer_states_has_to_be_asked_for(base: Path) -> None:
    shutil.rmtree(base / "global_step3")
    drop_optimizer(base / "global_step2")
    with pytest.raises(CheckpointError, match=r"set trainer\.load_optimizer_states to false"):
        make_trainer(train_iterations=5, save_dir=base)[0].fit()
    trainer, metrics = make_trainer(train_iterations=5, save_dir=base, load_optimizer_states=False)
    trainer.fit()
    assert (metrics.opened_at, trainer.learner.optimizer.state()["updates"]) == (2, 3)


def test_weights_without_a_history_are_started_from(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source, _ = make_trainer(load_dir=base)
    source.resume()
    Checkpointer(tmp_path / "imported").save(7, source.learner.module.global_tensors(), {})
    options: dict[str, Any] = {"load_dir": tmp_path / "imported"}
    with pytest.raises(CheckpointError, match=r"set trainer\.load_context and trainer\.load_optimizer_states to false"):
        make_trainer(**options)[0].fit()
    with pytest.raises(CheckpointError, match=r"set trainer\.load_context to false"):
        make_trainer(load_optimizer_states=False, **options)[0].fit()
    with pytest.raises(CheckpointError, match=r"name it as trainer\.load_dir, with another trainer\.save_dir"):
        make_trainer(save_dir=tmp_path / "imported")[0].fit()
    trainer, metrics = make_trainer(load_optimizer_states=False, load_context=False, **options)
    with caplog.at_level(logging.WARNING):
        trainer.fit()
    assert metrics.opened_at == 0
    assert caplog.text.count("setting") == 0
