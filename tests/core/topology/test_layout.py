"""Rank arithmetic: every rank has one place, and every axis cuts the world into groups."""

from __future__ import annotations

from itertools import product
from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling.core.errors import LayoutError
from scaling.core.topology.layout import Axis, Coordinate, Layout

LAYOUTS = st.builds(Layout, *[st.integers(1, 4)] * 4)
SMALL = st.sampled_from(
    [layout for sizes in product(range(1, 4), repeat=4) if (layout := Layout(*sizes)).world_size <= 18]
)
AXES = st.sampled_from(list(Axis))


def groups(layout: Layout, axes: Axis | tuple[Axis, ...]) -> list[tuple[int, ...]]:
    """Return all groups along the axes, ordered by their first rank."""
    return sorted({layout.group(axes, rank) for rank in range(layout.world_size)})


@given(LAYOUTS)
def test_every_rank_has_one_coordinate_and_back(layout: Layout) -> None:
    seen = set()
    for rank in range(layout.world_size):
        at = layout.coordinate(rank)
        assert layout.rank(pipe=at.pipe, data=at.data, context=at.context, model=at.model) == rank
        assert all(0 <= at.index(axis) < layout.size(axis) for axis in Axis)
        seen.add(at)
    assert len(seen) == layout.world_size == layout.pipe * layout.data * layout.context * layout.model


@given(LAYOUTS, AXES)
def test_groups_of_an_axis_cut_the_world(layout: Layout, axis: Axis) -> None:
    found = groups(layout, axis)
    assert sorted(rank for group in found for rank in group) == list(range(layout.world_size))
    assert {len(group) for group in found} == {layout.size(axis)}
    for group in found:
        assert list(group) == sorted(group)
        for index, rank in enumerate(group):
            assert layout.group(axis, rank) == group
            assert layout.coordinate(rank).index(axis) == index


@given(SMALL, st.permutations(list(Axis)), st.integers(0, 4))
def test_joint_groups_of_several_axes_cut_the_world_whatever_their_order(
    layout: Layout, order: list[Axis], count: int
) -> None:
    axes = tuple(order[:count])
    found = groups(layout, axes)
    assert sorted(rank for group in found for rank in group) == list(range(layout.world_size))
    assert {len(group) for group in found} == {prod(layout.size(axis) for axis in axes)}
    for group in found:
        assert list(group) == sorted(group)
        for rank in group:
            assert layout.group(axes, rank) == layout.group(tuple(reversed(axes)), rank) == group
            for other in Axis:
                if other not in axes:
                    assert layout.coordinate(rank).index(other) == layout.coordinate(group[0]).index(other)


@given(SMALL, AXES)
def test_one_axis_is_a_joint_group_of_itself_and_no_axis_is_a_rank_alone(layout: Layout, axis: Axis) -> None:
    for rank in range(layout.world_size):
        assert layout.group(axis, rank) == layout.group([axis], rank)
        assert layout.group((), rank) == (rank,)
        assert layout.group(Axis, rank) == tuple(range(layout.world_size))


def test_a_joint_group_is_in_rank_order_whatever_lies_between_its_axes() -> None:
    layout = Layout(pipe=2, data=2, context=2, model=2)
    assert groups(layout, (Axis.DATA, Axis.CONTEXT)) == [(0, 2, 4, 6), (1, 3, 5, 7), (8, 10, 12, 14), (9, 11, 13, 15)]
    assert layout.group((Axis.MODEL, Axis.PIPE), 5) == (4, 5, 12, 13)
    assert layout.group((Axis.PIPE, Axis.CONTEXT), 5) == (5, 7, 13, 15)


def test_data_and_context_ranks_see_different_tokens() -> None:
    assert [axis for axis in Axis if axis.splits_batch] == [Axis.DATA, Axis.CONTEXT]


@given(LAYOUTS, AXES, st.data())
def test_moving_along_an_axis_changes_nothing_else(layout: Layout, axis: Axis, data: st.DataObject) -> None:
    rank = data.draw(st.integers(0, layout.world_size - 1))
    index = data.draw(st.integers(0, layout.size(axis) - 1))
    moved = layout.coordinate(layout.rank_along(axis, rank, index))
    for other in Axis:
        assert moved.index(other) == (index if other is axis else layout.coordinate(rank).index(other))


def test_the_model_axis_varies_fastest_and_the_pipe_axis_slowest() -> None:
    layout = Layout(pipe=2, data=2, model=2)
    places = [layout.coordinate(rank) for rank in range(8)]
    assert places == [Coordinate(pipe=p, data=d, model=m) for p in range(2) for d in range(2) for m in range(2)]
    assert groups(layout, Axis.MODEL) == [(0, 1), (2, 3), (4, 5), (6, 7)]
    assert groups(layout, Axis.DATA) == [(0, 2), (1, 3), (4, 6), (5, 7)]
    assert groups(layout, Axis.PIPE) == [(0, 4), (1, 5), (2, 6), (3, 7)]
    assert groups(layout, Axis.CONTEXT) == [(rank,) for rank in range(8)]


@pytest.mark.parametrize("axis", list(Axis))
@pytest.mark.parametrize("size", [0, -1])
def test_an_axis_without_ranks_is_refused(axis: Axis, size: int) -> None:
    with pytest.raises(
        LayoutError, match=f"the {axis.value} axis has size {size}; every axis needs a size of at least 1"
    ):
        Layout(**{axis.value: size})


@pytest.mark.parametrize("rank", [-1, 8, 100])
def test_a_rank_outside_the_world_is_refused(rank: int) -> None:
    with pytest.raises(LayoutError, match=rf"rank {rank} is outside the world of 8 ranks \(0 to 7\)"):
        Layout(pipe=2, data=2, model=2).coordinate(rank)


@pytest.mark.parametrize("index", [-1, 3])
def test_an_index_outside_an_axis_is_refused(index: int) -> None:
    with pytest.raises(LayoutError, match=f"index {index} is outside the data axis of size 3"):
        Layout(data=3).rank(data=index)


def test_layouts_can_be_compared_and_kept_in_sets() -> None:
    assert Layout(data=2) == Layout(data=2)
    assert len({Layout(data=2), Layout(data=2), Layout(model=2)}) == 2
