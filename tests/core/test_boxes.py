"""Arithmetic of boxes: intersections, remainders, flat ranges and covers agree with counting elements."""

from __future__ import annotations

from itertools import pairwise
from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.core.boxes import Box, Former, boxes_of_flat_range, first_overlap, follow_each_other, uncovered, whole
from scaling.core.errors import LayoutError

PROPERTY = settings(deadline=None, derandomize=True, max_examples=150)

shapes = st.lists(st.integers(1, 6), min_size=0, max_size=4).map(tuple)


@st.composite
def boxes_within(draw: st.DrawFn, shape: tuple[int, ...]) -> Box:
    offset = tuple(draw(st.integers(0, length - 1)) for length in shape)
    lengths = tuple(draw(st.integers(1, length - start)) for length, start in zip(shape, offset, strict=True))
    return Box(offset, lengths)


@st.composite
def shape_and_boxes(draw: st.DrawFn, count: int = 2) -> tuple[tuple[int, ...], list[Box]]:
    shape = draw(shapes)
    return shape, [draw(boxes_within(shape)) for _ in range(count)]


def mask(shape: tuple[int, ...], boxes: list[Box]) -> np.ndarray:
    counts = np.zeros(shape, dtype=int)
    for box in boxes:
        counts[box.slices(whole(shape))] += 1
    return counts


@PROPERTY
@given(shape_and_boxes())
def test_an_intersection_holds_exactly_the_common_elements(case: tuple[tuple[int, ...], list[Box]]) -> None:
    shape, (a, b) = case
    common = a.intersect(b)
    expected = mask(shape, [a, b]) == 2
    assert np.array_equal(mask(shape, [] if common is None else [common]) == 1, expected)
    assert common == b.intersect(a)


@PROPERTY
@given(shape_and_boxes())
def test_subtracting_leaves_disjoint_boxes_with_the_rest(case: tuple[tuple[int, ...], list[Box]]) -> None:
    shape, (a, b) = case
    rest = list(a.subtract(b))
    expected = np.where(mask(shape, [b]) > 0, 0, mask(shape, [a]))
    assert np.array_equal(mask(shape, rest), expected)
    assert len(rest) <= 2 * max(1, len(shape))


@PROPERTY
@given(shapes, st.data())
def test_a_flat_range_is_cut_into_few_boxes_in_flat_order(shape: tuple[int, ...], data: st.DataObject) -> None:
    size = prod(shape)
    start = data.draw(st.integers(0, size))
    stop = data.draw(st.integers(start, size))
    flat = np.arange(size).reshape(shape)
    cut = list(boxes_of_flat_range(shape, start, stop))
    elements = [flat[box.slices(whole(shape))].reshape(-1) for box, _ in cut]
    assert np.concatenate([np.empty(0, int), *elements]).tolist() == list(range(start, stop))
    assert [int(part[0]) for part in elements] == [position for _, position in cut]
    assert len(cut) <= max(1, 2 * len(shape) - 1)


def test_a_flat_range_beyond_the_tensor_is_refused() -> None:
    with pytest.raises(LayoutError, match=r"elements 3 to 7 are not within a tensor of shape \[2, 3\]"):
        list(boxes_of_flat_range((2, 3), 3, 7))
    assert list(boxes_of_flat_range((0, 3), 0, 0)) == []


@PROPERTY
@given(shapes, st.integers(1, 40), st.data())
def test_cutting_keeps_elements_order_and_bound(shape: tuple[int, ...], elements: int, data: st.DataObject) -> None:
    box = data.draw(boxes_within(shape))
    flat = np.arange(prod(shape)).reshape(shape)
    cut = list(box.cut(elements))
    assert all(1 <= piece.size <= elements for piece in cut)
    joined = np.concatenate([flat[piece.slices(whole(shape))].reshape(-1) for piece in cut])
    assert np.array_equal(joined, flat[box.slices(whole(shape))].reshape(-1))


@PROPERTY
@given(shapes, st.integers(1, 6), st.data())
def test_overlaps_and_gaps_are_found_exactly(shape: tuple[int, ...], count: int, data: st.DataObject) -> None:
    boxes = [data.draw(boxes_within(shape)) for _ in range(count)]
    counts = mask(shape, boxes)
    pair = first_overlap(boxes)
    assert (pair is not None) == bool((counts > 1).any())
    if pair is not None:
        assert boxes[pair[0]].intersect(boxes[pair[1]]) is not None
    assert np.array_equal(mask(shape, uncovered(whole(shape), boxes)), (counts == 0).astype(int))


@PROPERTY
@given(shapes, st.integers(1, 5), st.data())
def test_flat_shards_of_column_slices_cover_a_tensor_exactly(
    shape: tuple[int, ...], ranks: int, data: st.DataObject
) -> None:
    """The cut of ZeRO over tensor parallelism: a column slice, flattened, cut into ranges."""
    dim = data.draw(st.integers(0, len(shape) - 1)) if shape else None
    edges = [0, shape[dim]] if dim is not None else [0, 1]
    if dim is not None:
        edges = sorted({*edges, *data.draw(st.lists(st.integers(0, shape[dim]), max_size=2))})
    boxes: list[Box] = []
    for low, high in pairwise(edges):
        local = tuple(high - low if index == dim else length for index, length in enumerate(shape))
        bounds = [rank * prod(local) // ranks for rank in range(ranks + 1)]
        for start, stop in pairwise(bounds):
            for box, _ in boxes_of_flat_range(local, start, stop):
                offset = tuple(low + a if index == dim else a for index, a in enumerate(box.offset))
                boxes.append(Box(offset, box.shape))
    assert first_overlap(boxes) is None
    assert uncovered(whole(shape), boxes) == []
    if dim == 0 or len(edges) == 2:  # a flat range of whole rows is one of the tensor
        assert follow_each_other(shape, data.draw(st.permutations(boxes)))


@PROPERTY
@given(shapes, st.integers(1, 6), st.data())
def test_boxes_that_follow_each_other_cover_a_tensor_exactly(
    shape: tuple[int, ...], count: int, data: st.DataObject
) -> None:
    edges = sorted(data.draw(st.lists(st.integers(0, prod(shape)), max_size=count)))
    ranges = pairwise([0, *edges, prod(shape)])
    boxes = [box for start, stop in ranges for box, _ in boxes_of_flat_range(shape, start, stop)]
    assert follow_each_other(shape, data.draw(st.permutations(boxes)))
    changed = [*boxes, data.draw(boxes_within(shape))] if data.draw(st.booleans()) else boxes[:-1]
    changed = [box for box in changed if box.size]
    assert follow_each_other(shape, changed) <= bool((mask(shape, changed) == 1).all())


@PROPERTY
@given(shapes, st.data())
def test_a_box_lies_in_a_shape_or_reaches_beyond_it(shape: tuple[int, ...], data: st.DataObject) -> None:
    assert data.draw(boxes_within(shape)).lies_in(shape)
    for dim, length in enumerate(shape):
        start = tuple(length if index == dim else 0 for index in range(len(shape)))
        assert not Box(start, (1,) * len(shape)).lies_in(shape)
    assert not Box((0, *shape), (1, *shape)).lies_in(shape)


@PROPERTY
@given(st.integers(1, 4), st.integers(0, 3), st.integers(0, 5), st.data())
def test_rows_are_found_in_the_blocks_they_lay_in(block: int, gap: int, offset: int, data: st.DataObject) -> None:
    former = Former((99, 2), block=block, stride=block + gap, offset=offset)
    box = data.draw(boxes_within((12, 2)))
    rows = []
    for here, there in former.pieces(box):
        assert here.shape == there.shape
        assert (here.offset[1], here.shape[1]) == (there.offset[1], there.shape[1]) == (box.offset[1], box.shape[1])
        rows += list(zip(range(here.offset[0], here.stop[0]), range(there.offset[0], there.stop[0]), strict=True))
    own = range(box.offset[0], box.stop[0])
    assert rows == [(row, row // block * (block + gap) + offset + row % block) for row in own]


def test_the_overlap_search_is_fast_where_a_tensor_is_cut_a_thousandfold() -> None:
    columns = [Box((0, index), (4096, 1)) for index in range(4096)]
    assert first_overlap(columns) is None
    assert first_overlap([*columns, Box((17, 99), (1, 1))]) == (99, 4096)


def test_a_box_prints_as_its_slices() -> None:
    assert str(Box((0, 8), (4, 8))) == "[0:4, 8:16]"
    assert Box((2, 8), (1, 2)).inside(Box((2, 6), (4, 8))) == Box((0, 2), (1, 2))
    assert Box((0, 2), (1, 2)).within(Box((2, 6), (4, 8))) == Box((2, 8), (1, 2))
