"""Every family comes back as it was: each tensor bit by bit, each field of its configuration."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig

from scaling.core.checkpoint.search import find_newest
from scaling.transformer.hf import exporter, importer
from scaling.transformer.hf.exporter import export_model
from scaling.transformer.hf.importer import import_model
from tests.transformer.hf.by_hand import read_weights, same_bits
from tests.transformer.hf.tiny_models import FAMILIES, tiny_model


def save(name: str, folder: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    """Save a tiny model in a type, and return its tensors as saved."""
    model = deepcopy(tiny_model(name)).to(dtype)
    model.save_pretrained(folder, max_shard_size="60KB" if dtype is torch.float32 else "5GB")
    return read_weights(folder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_comes_back_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(importer, "PIECE_BYTES", 5000)
    monkeypatch.setattr(exporter, "PIECE_BYTES", 7000)
    tensors = save(name, tmp_path / "m", dtype)
    import_model(tmp_path / "m", tmp_path / "c")
    stored = find_newest(tmp_path / "c").require()
    assert {entry.dtype for entry in stored.manifest.tensors.values()} == {"F32" if dtype.itemsize == 4 else "BF16"}
    done = export_model(stored, tmp_path / "e")
    assert done.model_type == tiny_model(name).config.model_type
    assert same_bits(read_weights(tmp_path / "e"), tensors)
    before, after = (AutoConfig.from_pretrained(tmp_path / folder).to_dict() for folder in ("m", "e"))
    for config in (before, after):
        config.pop("transformers_version", None)
        config.pop("_name_or_path", None)
    assert after == before
