"""Pieces that are loaded as they are written become a checkpoint like any other, or nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from scaling.core.boxes import Box
from scaling.core.checkpoint.files import constant
from scaling.core.checkpoint.pieces import LazyTensor, save_pieces
from scaling.core.checkpoint.plain_files import open_plain
from scaling.core.checkpoint.reader import CheckpointReader
from scaling.core.checkpoint.search import find_newest
from scaling.core.errors import CheckpointError


def halves(tensor: Tensor) -> LazyTensor:
    """Cut into the first column and the rest."""
    shape = tuple(tensor.shape)
    boxes = [Box((0, 0), (shape[0], 1)), Box((0, 1), (shape[0], shape[1] - 1))]
    parts = [(box, constant(tensor[box.slices(Box((0, 0), shape))])) for box in boxes]
    return LazyTensor("w", shape, tensor.dtype, parts)


def test_pieces_of_any_cut_become_a_checkpoint(tmp_path: Path) -> None:
    tensor = torch.randn(3, 4)
    path = save_pieces(tmp_path, 7, [halves(tensor)], scalars={"a": 1}, information={"from": "x"})
    stored = find_newest(tmp_path).require()
    assert (stored.path, stored.step, stored.manifest.scalars) == (path, 7, {"a": 1})
    assert stored.manifest.information["from"] == "x"
    assert "torch" in stored.manifest.information
    assert (tmp_path / "latest").read_text() == "global_step7"
    with CheckpointReader(stored) as reader:
        assert torch.equal(reader.read("w"), tensor)
        rows = torch.empty(2, 4, dtype=torch.float64)
        reader.read_into("w", Box((1, 0), (2, 4)), rows)
        assert torch.equal(rows, tensor[1:].double())


def test_what_is_not_covered_or_there_already_is_refused(tmp_path: Path) -> None:
    tensor = halves(torch.randn(3, 4))
    with pytest.raises(CheckpointError, match="do not cover"):
        save_pieces(tmp_path, 0, [replace(tensor, parts=[*tensor.parts][:1])], scalars={}, information={})
    assert list(tmp_path.iterdir()) == []
    save_pieces(tmp_path, 0, [tensor], scalars={}, information={})
    with pytest.raises(CheckpointError, match="exists already"):
        save_pieces(tmp_path, 0, [tensor], scalars={}, information={})


def test_each_tensor_lies_at_a_multiple_of_the_size_of_its_values(tmp_path: Path) -> None:
    """So that other programs can map it."""
    values = {"a": torch.ones(3, 1).bfloat16(), "b": torch.ones(3, 1).double(), "c": torch.ones(5, 1)}
    tensors = [
        LazyTensor(name, tuple(tensor.shape), tensor.dtype, [(Box((0, 0), tuple(tensor.shape)), constant(tensor))])
        for name, tensor in values.items()
    ]
    path = save_pieces(tmp_path, 0, tensors, scalars={}, information={})
    (file,) = path.glob("*.safetensors")
    with open_plain(file) as opened:
        assert all(slot.start % values[name].dtype.itemsize == 0 for name, slot in opened.slots.items())
