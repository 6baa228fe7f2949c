"""Whatever their tensors are made of, boxes of ours and of theirs say the same: whole, fused, transposed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from scaling.core import whole
from scaling.transformer.hf.copies import copies_from, copies_into, pieces_of_ours, pieces_of_theirs
from scaling.transformer.hf.tensors import Rows, Source, TensorMap

PLAIN = TensorMap("w", (6, 5), (Source("a", (6, 5)),))
TURNED = TensorMap("w", (5, 6), (Source("a", (6, 5)),), transposed=True)
BLOCKS = (
    Source("q", (8, 5), Rows(0, 8, 8)),
    Source("k", (4, 5), Rows(8, 4, 4)),
    Source("v", (4, 5), Rows(12, 4, 4)),
)
"""Query, key and value one behind the other, with fewer key-value heads."""
FUSED = TensorMap("w", (16, 5), BLOCKS)
FUSED_TURNED = TensorMap("w", (5, 16), BLOCKS, transposed=True)
HEADS = TensorMap("w", (12, 5), tuple(Source(key, (4, 5), Rows(2 * i, 2, 6)) for i, key in enumerate("qkv")))
"""By head: query, key and value of each."""
BIASES = TensorMap("b", (12,), tuple(Source(key, (4,), Rows(2 * i, 2, 6)) for i, key in enumerate("qkv")))

MAPS = {
    "plain": PLAIN,
    "transposed": TURNED,
    "fused": FUSED,
    "fused, transposed": FUSED_TURNED,
    "by head": HEADS,
    "biases": BIASES,
}


def ours_of(theirs: TensorMap) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {source.key: torch.randn(source.shape, generator=generator) for source in theirs.sources}


def expected(theirs: TensorMap, ours: dict[str, Tensor]) -> Tensor:
    """Put theirs together row by row, as the description of `Rows` says."""
    rows = theirs.shape[::-1] if theirs.transposed else theirs.shape
    made = torch.full(rows, float("nan"))
    for source in theirs.sources:
        for row in range(source.shape[0]):
            place = row
            if source.rows is not None:
                block, within = divmod(row, source.rows.block)
                place = source.rows.offset + block * source.rows.stride + within
            made[place] = ours[source.key][row]
    return made.t() if theirs.transposed else made


@pytest.mark.parametrize("elements", [1, 3, 7, 1000])
@pytest.mark.parametrize("theirs", MAPS.values(), ids=MAPS)
def test_both_directions_move_every_value_once_in_pieces_of_any_size(theirs: TensorMap, elements: int) -> None:
    ours = ours_of(theirs)
    file = expected(theirs, ours)
    made = torch.full(theirs.shape, float("nan"))
    for box in pieces_of_theirs(theirs, elements):
        assert box.size <= elements
        for copy in copies_into(theirs, box):
            assert copy.ours.size
            values = ours[copy.key][copy.ours.slices(whole(ours[copy.key].shape))]
            place = made[copy.theirs.slices(whole(theirs.shape))]
            assert bool(place.isnan().all())
            place.copy_(values.t() if theirs.transposed else values)
    assert torch.equal(made, file)
    for source in theirs.sources:
        back = torch.full(source.shape, float("nan"))
        for box in pieces_of_ours(theirs, source, elements):
            assert box.size <= elements
            for copy in copies_from(theirs, source, box):
                values = file[copy.theirs.slices(whole(theirs.shape))]
                place = back[copy.ours.slices(whole(source.shape))]
                assert bool(place.isnan().all())
                place.copy_(values.t() if theirs.transposed else values)
        assert torch.equal(back, ours[source.key])


def test_pieces_of_theirs_follow_each_other_in_their_file() -> None:
    numbers = torch.arange(12 * 5).reshape(12, 5)
    found = [numbers[box.slices(whole((12, 5)))].flatten() for box in pieces_of_theirs(HEADS, 7)]
    assert torch.equal(torch.cat(found), numbers.flatten())


def test_pieces_of_ours_are_rows_of_a_file_that_transposes() -> None:
    (first, *_) = pieces_of_ours(TURNED, TURNED.sources[0], 12)
    assert first.shape == (6, 2)
