"""Rank arithmetic: every rank has one place, and every axis cuts the world into groups."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling.core.errors import LayoutError
from scaling.core.topology.layout import Axis, Coordinate, Layout

LAYOUTS = st.builds(Layout, *[st.integers(1, 4)] * 4)
AXES = st.sampled_from(list(Axis))


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
    groups = layout.groups(axis)
    assert sorted(rank for group in groups for rank in group) == list(range(layout.world_size))
    assert {len(group) for group in groups} == {layout.size(axis)}
    assert groups == sorted(groups)
    for group in groups:
        assert list(group) == sorted(group)
        for index, rank in enumerate(group):
            assert layout.group(axis, rank) == group
            assert layout.coordinate(rank).index(axis) == index


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
    assert layout.groups(Axis.MODEL) == [(0, 1), (2, 3), (4, 5), (6, 7)]
    assert layout.groups(Axis.DATA) == [(0, 2), (1, 3), (4, 6), (5, 7)]
    assert layout.groups(Axis.PIPE) == [(0, 4), (1, 5), (2, 6), (3, 7)]
    assert layout.groups(Axis.CONTEXT) == [(rank,) for rank in range(8)]


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
