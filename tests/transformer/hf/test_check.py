"""The check after an export compares logits, and says so where it cannot."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch

from scaling.core import CheckpointError
from scaling.core.checkpoint.search import find_newest
from scaling.transformer.hf import check
from scaling.transformer.hf.check import check_export
from scaling.transformer.hf.exporter import export_model
from scaling.transformer.hf.importer import import_model
from tests.transformer.hf.by_hand import read_weights, weights, write_model, write_weights
from tests.transformer.hf.tiny_models import model_class, tiny_config


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """A checkpoint and what it was exported to."""
    import_model(write_model(tmp_path / "m"), tmp_path / "c")
    stored = find_newest(tmp_path / "c").require()
    return stored.path, export_model(stored, tmp_path / "e").path


def test_the_same_model_passes(folders: tuple[Path, Path]) -> None:
    checked = check_export(*folders)
    assert checked.difference is not None
    assert 0 < checked.difference < 1e-5
    assert checked.remark.startswith("checked: logits of 32 tokens differ by ")


def test_two_exchanged_tensors_do_not(folders: tuple[Path, Path]) -> None:
    checkpoint, exported = folders
    names = [f"model.layers.{layer}.self_attn.q_proj.weight" for layer in (0, 1)]
    found = read_weights(exported)
    found[names[0]], found[names[1]] = found[names[1]], found[names[0]]
    write_weights(exported, found)
    with pytest.raises(CheckpointError, match=r"does not compute what .* does: logits of 32 tokens differ"):
        check_export(checkpoint, exported)


def test_rounded_weights_are_compared_with_rounded_ones(folders: tuple[Path, Path], tmp_path: Path) -> None:
    checkpoint, _ = folders
    stored = find_newest(checkpoint).require()
    rounded = export_model(stored, tmp_path / "r", dtype=torch.bfloat16).path
    checked = check_export(checkpoint, rounded, dtype=torch.bfloat16)
    assert checked.difference is not None
    assert checked.difference < 1e-5
    with pytest.raises(CheckpointError, match="does not compute"):
        check_export(checkpoint, rounded)


def test_logits_that_are_no_numbers_do_not_pass(folders: tuple[Path, Path]) -> None:
    checkpoint, exported = folders
    write_weights(exported, weights() | {"model.norm.weight": torch.full((16,), float("nan"))})
    with pytest.raises(CheckpointError, match="differ by nan"):
        check_export(checkpoint, exported)


def test_where_transformers_is_not_there_or_old_it_says_so(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "version", lambda name: "4.57.1")
    assert "transformers is of version 4.57.1, the check needs 5" in check_export(*folders).remark

    def absent(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(check, "version", absent)
    checked = check_export(*folders)
    assert checked.difference is None
    assert checked.remark == "not checked: transformers is not installed (`pip install 'scaling[hf]'`)"


def test_rotations_that_follow_the_length_are_compared_at_one_length(tmp_path: Path) -> None:
    """In transformers they follow the batch, here the configured length, which is longer."""
    model = model_class("phi3")(tiny_config("phi3", original_max_position_embeddings=40))
    model.save_pretrained(tmp_path / "m")
    (remark,) = [text for text in import_model(tmp_path / "m", tmp_path / "c").remarks if "sequence_length" in text]
    assert "up to 40 tokens and another beyond" in remark
    stored = find_newest(tmp_path / "c").require()
    checked = check_export(stored.path, export_model(stored, tmp_path / "e").path)
    assert checked.difference is not None
    assert checked.difference < 1e-5
