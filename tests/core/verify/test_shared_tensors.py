"""Tensors pass from one layout to the other through a folder, exactly."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from scaling.core import Box, GlobalTensor
from scaling.core.verify.shared_tensors import SharedTensors


def tensor(key: str, values: torch.Tensor, *, start: int = 0, length: int = 4, owned: bool = True) -> GlobalTensor:
    shape = (length, *values.shape[1:])
    return GlobalTensor(key, shape, [(Box((start, *[0] * (values.dim() - 1)), tuple(values.shape)), values)], owned)


def test_parts_of_several_writers_make_the_whole(tmp_path: Path) -> None:
    values = torch.randn(4, 3, dtype=torch.float64)
    shared = SharedTensors(tmp_path / "new")
    for start in (0, 2):
        shared.write([tensor("layers.0.a/b", values[start : start + 2], start=start)])
    whole = shared.read("layers.0.a/b", (4, 3), Box((1, 1), (3, 2)))
    assert (whole == values[1:4, 1:3].numpy()).all()


def test_what_another_rank_owns_is_not_written(tmp_path: Path) -> None:
    shared = SharedTensors(tmp_path)
    shared.write([tensor("w", torch.ones(4)), tensor("w", torch.zeros(4), owned=False)])
    assert shared.read("w", (4,), Box((0,), (4,))).tolist() == [1.0] * 4
    with pytest.raises(FileNotFoundError):
        shared.read("never written", (4,), Box((0,), (4,)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.int32])
def test_every_type_is_kept_exactly(dtype: torch.dtype, tmp_path: Path) -> None:
    values = (torch.randn(4) * 100).to(dtype)
    shared = SharedTensors(tmp_path)
    shared.write([tensor("w", values)])
    (deviation,) = shared.compare([tensor("w", values)], rank=2)
    assert (deviation.absolute, deviation.different, deviation.rank) == (0.0, 0, 2)


def test_a_replica_is_compared_although_it_is_not_written(tmp_path: Path) -> None:
    shared = SharedTensors(tmp_path)
    shared.write([tensor("w", torch.tensor([1.0, 2.0, 3.0, 4.0]))])
    (deviation,) = shared.compare([tensor("w", torch.tensor([3.0, 5.0]), start=2, owned=False)], rank=1)
    assert (deviation.index, deviation.actual, deviation.expected) == ((3,), 5.0, 4.0)


def test_scalars_and_empty_tensors_are_tensors(tmp_path: Path) -> None:
    shared = SharedTensors(tmp_path)
    odd = [GlobalTensor("scalar", (), [(Box((), ()), torch.tensor(2.5))]), GlobalTensor("empty", (0, 3), [])]
    shared.write(odd)
    assert shared.read("scalar", (), Box((), ())) == 2.5
    assert shared.read("empty", (0, 3), Box((0, 0), (0, 3))).shape == (0, 3)


def test_the_digest_depends_on_every_bit_and_name_and_not_on_the_cut(tmp_path: Path) -> None:
    values = torch.arange(4.0)

    def digest(name: str, key: str, *pieces: tuple[int, torch.Tensor]) -> str:
        shared = SharedTensors(tmp_path / name)
        for start, piece in pieces:
            shared.write([tensor(key, piece, start=start)])
        return shared.digest({key: (4,)})

    whole = digest("whole", "w", (0, values))
    assert digest("halves", "w", (2, values[2:]), (0, values[:2])) == whole
    assert digest("renamed", "v", (0, values)) != whole
    assert digest("negative zero", "w", (0, values.copysign(torch.tensor([-1.0, 1.0, 1.0, 1.0])))) != whole
