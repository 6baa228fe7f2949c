"""A run may go on in another precision, or with new parameters, and loses nothing that the checkpoint knows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from scaling.core.checkpoint.reader import CheckpointReader
from scaling.core.checkpoint.search import find_newest
from tests.transformer.small import build_corpus, layout, train_small, values

ZERO = {"optimizer.zero": True}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_corpus(tmp_path_factory.mktemp("corpus") / "training")


def precision(name: str) -> dict[str, Any]:
    return {"transformer_architecture.precision": name, "trainer.train_iterations": 3}


def stored(folder: Path) -> dict[str, Tensor]:
    """Return all tensors of the newest checkpoint."""
    found = find_newest(folder).require()
    with CheckpointReader(found) as reader:
        return {name: reader.read(name) for name in found.manifest.tensors}


def converted(
    data: Path, run: Path, before: Mapping[str, Any], after: Mapping[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Train, load the result with other settings, save it at once, and return both checkpoints' tensors."""
    train_small(data, run / "before", before, {"trainer.save_dir": str(run / "a")})
    train_small(data, run / "after", after, {"trainer.load_dir": str(run / "a"), "trainer.save_dir": str(run / "b")})
    return stored(run / "a"), stored(run / "b")


def test_float32_weights_are_the_masters_of_half_precision(data: Path, tmp_path: Path) -> None:
    cut = {**layout(2, 1, 1), **ZERO}
    before, after = converted(data, tmp_path, {**precision("bfloat16"), **cut}, precision("float32"))
    weights = [name for name in before if not name.startswith("optimizer.")]
    assert all(torch.equal(after[name], before[f"optimizer.master.{name}"]) for name in weights)
    assert any((after[name] != before[name].float()).any() for name in weights)
    for slot in ("exp_avg", "exp_avg_sq"):
        for name in weights:
            assert torch.equal(after[f"optimizer.{slot}.{name}"], before[f"optimizer.{slot}.{name}"])


def test_float32_weights_become_the_masters_of_half_precision(data: Path, tmp_path: Path) -> None:
    cut = {**layout(2, 1, 1), **ZERO}
    before, after = converted(data, tmp_path, precision("float32"), {**precision("bfloat16"), **cut})
    for name in before:
        if not name.startswith("optimizer."):
            assert torch.equal(after[f"optimizer.master.{name}"], before[name]), name
            assert torch.equal(after[name], before[name].bfloat16()), name


@pytest.mark.parametrize("narrow", ["before", "after"])
def test_moments_go_on_in_another_type(data: Path, tmp_path: Path, narrow: str) -> None:
    """They are converted, and the change is named."""
    cut = {**layout(2, 1, 1), **ZERO}
    bfloat16 = {"optimizer.exp_avg_dtype": "bfloat16", "optimizer.exp_avg_sq_dtype": "bfloat16"}
    settings = {name: {**precision("float32"), **(bfloat16 if name == narrow else {})} for name in ("before", "after")}
    before, after = converted(data, tmp_path, {**settings["before"], **cut}, settings["after"])
    moments = [name for name in before if name.startswith("optimizer.exp_avg")]
    assert moments
    for name in before:
        is_narrow = torch.bfloat16 if name in moments else torch.float32
        assert (before if narrow == "before" else after)[name].dtype == is_narrow
        assert torch.equal(after[name], before[name].to(after[name].dtype)), name
    log = (tmp_path / "after" / "rank_0.log").read_text()
    for setting in bfloat16:
        assert f"resuming with another setting: {setting}" in log


def test_new_parameters_leave_the_masters_of_the_others_exact(data: Path, tmp_path: Path) -> None:
    new = {
        "transformer_architecture.key_query_norm": True,
        "trainer.accept_changes": ["transformer_architecture.key_query_norm"],
        "trainer.allowed_missing_keys_in_checkpoint": [r"^layers\.\d+\.self_attention\.norm_"],
    }
    before, after = converted(data, tmp_path, precision("bfloat16"), {**precision("bfloat16"), **new})
    assert before.keys() < after.keys()
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor), name
    added = [name for name in after if name not in before]
    for name in added:
        expected = 0.0 if name.startswith("optimizer.exp_avg") else 1.0
        assert (after[name] == expected).all(), name


def test_float16_starts_from_its_own_loss_scale(data: Path, tmp_path: Path) -> None:
    scale = {"optimizer.loss_scaler.initial_scale": 512.0}
    folder = {"trainer.save_dir": str(tmp_path / "checkpoints")}
    train_small(data, tmp_path, precision("float32"), scale, folder)
    half = {**precision("float16"), "trainer.train_iterations": 5}
    assert values(train_small(data, tmp_path, half, scale, folder), "training/loss_scale") == [512.0, 512.0]
