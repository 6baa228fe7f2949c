"""What keeps a run from going on from a checkpoint is told from names and the manifest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from scaling.core.checkpoint.manifest import Manifest
from scaling.core.trainer.config import TrainerConfig
from scaling.core.trainer.fitness import refused_return, scalars_lacking, takes_optimizer


def config(**settings: Any) -> TrainerConfig:
    return TrainerConfig.from_dict(settings)


@pytest.mark.parametrize(
    ("load_dir", "save_dir", "refused"),
    [
        ("run/global_step2", "run", True),
        ("run/../run/global_step2", "run", True),
        ("run/global_step4", "run", False),  # the newest, from which it goes on anyway
        ("run/elsewhere", "run", False),
        ("other/global_step2", "run", False),
        (None, "run", False),
        ("run/global_step2", None, False),
    ],
)
def test_a_run_does_not_go_back_in_its_own_folder(
    load_dir: str | None, save_dir: str | None, refused: bool, tmp_path: Path
) -> None:
    places = {"load_dir": load_dir, "save_dir": save_dir}
    trainer = config(**{name: tmp_path / place for name, place in places.items() if place is not None})
    problem = refused_return(trainer, 4)
    assert (problem is not None) == refused
    if problem is not None:
        assert "names step 2 of save_dir itself" in str(problem)
        assert "which is step 4" in str(problem)


def manifest(*scalars: str, tensors: Sequence[str] = ()) -> Manifest:
    entry: Any = None  # only names are looked at
    return Manifest(step=4, files={}, tensors=dict.fromkeys(tensors, entry), scalars={name: {} for name in scalars})


def test_what_is_lacking_is_named_with_the_setting_that_does_without() -> None:
    both = {"load_context": True, "load_optimizer_states": True}
    assert scalars_lacking(manifest("trainer", "optimizer"), config(**both), own=False) == []
    [text] = scalars_lacking(manifest(), config(**both), own=False)
    assert "set trainer.load_context and trainer.load_optimizer_states to false" in text
    assert "name it as trainer.load_dir" not in text
    [text] = scalars_lacking(manifest("optimizer"), config(load_context=False, load_optimizer_states=True), own=True)
    assert "the numbers of steps and samples (" in text
    assert "name it as trainer.load_dir, with another trainer.save_dir, and set trainer.load_context to false" in text
    assert scalars_lacking(manifest(), config(load_context=False, load_optimizer_states=False), own=False) == []


def test_the_optimizer_is_taken_where_it_is_asked_for_or_lies_in_the_runs_own_folder() -> None:
    without = config(load_optimizer_states=False)
    moments = manifest(tensors=["optimizer.exp_avg.layers.0.weight"])
    assert takes_optimizer(moments, without, own=True)
    assert not takes_optimizer(moments, without, own=False)
    assert not takes_optimizer(manifest(tensors=["layers.0.weight"]), without, own=True)
    assert takes_optimizer(manifest(), config(load_optimizer_states=True), own=False)
