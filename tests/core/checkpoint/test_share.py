"""What a rank saves: pieces that fit into files, the largest elements first, so that all lie on multiples of them."""

from __future__ import annotations

import pytest
import torch

from scaling.core.boxes import Box, GlobalTensor, uncovered, whole
from scaling.core.checkpoint.share import plan_share


def held(key: str, values: torch.Tensor) -> GlobalTensor:
    return GlobalTensor(key, tuple(values.shape), [(whole(values.shape), values)])


def test_pieces_are_ordered_by_group_and_then_by_the_size_of_their_elements() -> None:
    types = {"optimizer.a": torch.float64, "b": torch.bfloat16, "c": torch.float32, "d": torch.uint8, "e": torch.int64}
    share = plan_share([held(key, torch.zeros(2, dtype=dtype)) for key, dtype in types.items()], 1 << 20)
    assert [piece.tensor for piece in share.pieces] == ["e", "c", "b", "d", "optimizer.a"]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("limit", [1, 16, 100, 1 << 20])
def test_what_is_too_large_for_a_file_is_cut(dtype: torch.dtype, limit: int) -> None:
    share = plan_share([held("w", torch.zeros(6, 5, dtype=dtype))], limit)
    boxes: list[Box] = [piece.box for piece in share.pieces]
    assert sum(box.size for box in boxes) == 30
    assert uncovered(whole((6, 5)), boxes) == []
    assert all(piece.bytes <= max(limit, dtype.itemsize) for piece in share.pieces)
    assert (len(boxes) == 1) == (30 * dtype.itemsize <= limit)
