"""Placements, asked rank by rank: who holds the same values, who stands for them, who sums what with whom."""

from __future__ import annotations

import itertools
from collections import Counter
from math import prod

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.core.topology.layout import Axis, Layout
from scaling.core.topology.placement import CUT, SAME, SAME_IN_PARTS, USUAL, Placement, Placements, tied

LAYOUTS = st.sampled_from(
    [layout for sizes in itertools.product(range(1, 5), repeat=4) if (layout := Layout(*sizes)).world_size <= 24]
)


@st.composite
def placement_on(draw: st.DrawFn, size: int) -> Placement:
    """Draw how something may lie along an axis of `size` ranks."""
    in_parts = draw(st.booleans())
    if draw(st.booleans()):
        indices = draw(st.sets(st.integers(0, size - 1), min_size=1))
        return Placement(indices=tuple(sorted(indices)), gradient_in_parts=in_parts)
    copies = draw(st.sampled_from([None, *(number for number in range(1, size + 1) if size % number == 0)]))
    return Placement(copies=copies, gradient_in_parts=in_parts)


@st.composite
def placed(draw: st.DrawFn) -> tuple[Layout, Placements]:
    """Draw a layout, and how something lies in it."""
    layout = draw(LAYOUTS)
    return layout, Placements(tuple(draw(placement_on(layout.size(axis))) for axis in Axis))


def members(layout: Layout, axis: Axis, placement: Placement, rank: int) -> set[int]:
    """Return the ranks along `axis` that hold the same values as `rank`."""
    holders = placement.holders(layout.coordinate(rank).index(axis), layout.size(axis))
    return {layout.rank_along(axis, rank, index) for index in holders}


def holders(layout: Layout, placements: Placements, rank: int) -> frozenset[int]:
    """Return all ranks that hold the same values as `rank`."""
    at = layout.coordinate(rank)
    along = [placements.on(axis).holders(at.index(axis), layout.size(axis)) for axis in Axis]
    return frozenset(layout.rank(pipe=p, data=d, context=c, model=m) for p, d, c, m in itertools.product(*along))


def holding(layout: Layout, placements: Placements) -> list[int]:
    """Return the ranks that hold any of it: all but those beside a tie."""
    return [rank for rank in range(layout.world_size) if rank in holders(layout, placements, rank)]


def standing(layout: Layout, placements: Placements, *, spread: int = 0) -> list[int]:
    """Return the ranks that stand for the values they hold."""
    ranks = range(layout.world_size)
    return [rank for rank in ranks if placements.stands_for(layout, layout.coordinate(rank), spread=spread)]


@given(placed())
def test_ranks_that_hold_the_same_values_agree_on_who_they_are(case: tuple[Layout, Placements]) -> None:
    layout, placements = case
    sets = {rank: holders(layout, placements, rank) for rank in holding(layout, placements)}
    assert sets
    for rank, own in sets.items():
        assert all(sets[other] == own for other in own), rank
    assert sorted(itertools.chain(*set(sets.values()))) == sorted(sets)


@given(size=st.integers(1, 12), data=st.data())
def test_holders_are_positions_on_the_axis_in_order(size: int, data: st.DataObject) -> None:
    placement = data.draw(placement_on(size))
    for index in range(size):
        found = list(placement.holders(index, size))
        assert found == sorted(set(found))
        assert set(found) <= set(range(size))
        assert placement.indices is not None or index in found


@given(placed(), st.integers(0, 10**9))
def test_of_all_that_hold_the_same_values_one_stands_for_them(case: tuple[Layout, Placements], spread: int) -> None:
    layout, placements = case
    sets = [holders(layout, placements, rank) for rank in standing(layout, placements, spread=spread)]
    assert Counter(sets) == dict.fromkeys(
        {holders(layout, placements, rank) for rank in holding(layout, placements)}, 1
    )


@given(placed())
def test_the_first_of_them_stands_unless_the_work_is_dealt_out(case: tuple[Layout, Placements]) -> None:
    layout, placements = case
    firsts = {min(holders(layout, placements, rank)) for rank in holding(layout, placements)}
    assert standing(layout, placements) == sorted(firsts)


@settings(max_examples=25)
@given(placed(), st.integers(0, 1000))
def test_consecutive_numbers_deal_the_work_out_to_each_holder_in_turn(
    case: tuple[Layout, Placements], first: int
) -> None:
    layout, placements = case
    count = len(holders(layout, placements, holding(layout, placements)[0]))
    dealt = Counter(
        rank for number in range(first, first + count) for rank in standing(layout, placements, spread=number)
    )
    assert dealt == dict.fromkeys(holding(layout, placements), 1)


def after_all_sums(layout: Layout, placements: Placements) -> dict[int, Counter[int]]:
    """Return whose parts of the gradient each rank has after the sums that the placements ask for, how often."""
    parts = {rank: Counter([rank]) for rank in range(layout.world_size)}
    batch = placements.batch_axes(layout)
    parts = {rank: sum((parts[other] for other in layout.group(batch, rank)), Counter()) for rank in parts}
    for axis, placement in placements.other_sums(layout):
        parts = {
            rank: sum((parts[other] for other in members(layout, axis, placement, rank)), Counter()) for rank in parts
        }
    return parts


@settings(max_examples=25)
@given(placed())
def test_the_sums_add_each_part_of_a_gradient_once(case: tuple[Layout, Placements]) -> None:
    layout, placements = case
    found = after_all_sums(layout, placements)
    for rank in holding(layout, placements):
        wanted = {rank}
        for axis in Axis:
            if placements.on(axis).gradient_in_parts:
                wanted = {m for other in wanted for m in members(layout, axis, placements.on(axis), other)}
        assert found[rank] == dict.fromkeys(wanted, 1)


@given(placed())
def test_only_axes_that_split_the_batch_and_have_other_ranks_are_summed_jointly(
    case: tuple[Layout, Placements],
) -> None:
    layout, placements = case
    batch, other = placements.batch_axes(layout), placements.other_sums(layout)
    assert list(batch) == [axis for axis in Axis if axis in batch]  # in the order of the axes, on all ranks alike
    for axis in batch:
        assert axis.splits_batch
        assert layout.size(axis) > 1
        assert placements.on(axis) == SAME_IN_PARTS
    assert not {axis for axis, _ in other} & set(batch)
    for axis, placement in other:
        assert placement == placements.on(axis)
        assert len(placement.holders(0, layout.size(axis))) > 1


@settings(max_examples=25)
@given(placed(), st.integers(0, 10**9))
def test_the_shortest_form_means_the_same(case: tuple[Layout, Placements], spread: int) -> None:
    layout, placements = case
    short, ranks = placements.within(layout), holding(layout, placements)
    for rank in ranks:
        assert holders(layout, short, rank) == holders(layout, placements, rank)
    stand = [set(standing(layout, each, spread=spread)) & set(ranks) for each in (placements, short)]
    assert stand[0] == stand[1]
    sums = [after_all_sums(layout, each) for each in (placements, short)]
    assert all(sums[0][rank] == sums[1][rank] for rank in ranks)
    assert short.within(layout) == short


@given(LAYOUTS, st.booleans())
def test_what_means_the_same_in_a_layout_has_one_shortest_form(layout: Layout, in_parts: bool) -> None:
    def everywhere(*placements: Placement) -> Placements:
        return Placements(placements).within(layout)

    every = everywhere(*[Placement(gradient_in_parts=in_parts)] * 4)
    assert every == everywhere(*(Placement(layout.size(axis), gradient_in_parts=in_parts) for axis in Axis))
    assert everywhere(*[CUT] * 4) == everywhere(*[Placement(1, gradient_in_parts=in_parts)] * 4)
    assert len({every, everywhere(*[Placement(gradient_in_parts=in_parts)] * 4)}) == 1  # alike as keys too


@given(st.lists(st.sampled_from([SAME, SAME_IN_PARTS, CUT, tied([0]), Placement(1)]), min_size=4, max_size=4))
def test_an_axis_of_one_rank_changes_nothing(along: list[Placement]) -> None:
    placements, alone = Placements(tuple(along)), Layout()
    assert placements.within(alone) == Placements((CUT,) * 4)
    assert standing(alone, placements, spread=7) == [0]
    assert placements.batch_axes(alone) == ()
    assert placements.other_sums(alone) == ()


@given(LAYOUTS, st.integers(0, 10**9))
def test_usually_a_stage_holds_its_parameters_on_all_ranks_and_sums_over_those_that_split_the_batch(
    layout: Layout, spread: int
) -> None:
    for rank in range(layout.world_size):
        stage = layout.group((Axis.DATA, Axis.CONTEXT, Axis.MODEL), rank)
        assert holders(layout, USUAL, rank) == set(stage)
    assert len(standing(layout, USUAL, spread=spread)) == layout.pipe
    wide = tuple(axis for axis in (Axis.DATA, Axis.CONTEXT) if layout.size(axis) > 1)
    assert USUAL.batch_axes(layout) == wide
    assert USUAL.other_sums(layout) == ()


@given(LAYOUTS, st.sets(st.sampled_from(list(Axis))))
def test_slices_along_axes_are_each_ranks_own(layout: Layout, axes: set[Axis]) -> None:
    sliced = USUAL.cut(axes)
    assert all(sliced.on(axis) == (CUT if axis in axes else USUAL.on(axis)) for axis in Axis)
    assert len(standing(layout, sliced)) == prod(layout.size(axis) for axis in {*axes, Axis.PIPE})
    assert not axes & {*sliced.batch_axes(layout), *(axis for axis, _ in sliced.other_sums(layout))}


@pytest.mark.parametrize("axis", list(Axis))
def test_one_axis_is_changed_at_a_time(axis: Axis) -> None:
    changed = USUAL.having(axis, Placement(copies=3))
    assert [changed.on(other) for other in Axis if other is not axis] == [
        USUAL.on(other) for other in Axis if other is not axis
    ]
    assert changed.on(axis) == Placement(copies=3)
    assert changed.having(axis, USUAL.on(axis)) == USUAL


def test_tensors_are_cut_by_axes_whose_ranks_have_not_all_the_same() -> None:
    layout = Layout(pipe=2, data=2, model=4)
    assert USUAL.cut_axes(layout) == ()
    assert USUAL.having(Axis.PIPE, tied([0, 1])).cut_axes(layout) == ()
    for copies in (1, 2):
        heads = USUAL.having(Axis.MODEL, Placement(copies=copies))
        assert heads.cut_axes(layout) == (Axis.MODEL,)
        assert heads.cut([Axis.DATA]).cut_axes(layout) == (Axis.DATA, Axis.MODEL)
        assert heads.cut_axes(Layout(pipe=2, data=2)) == ()
    assert USUAL.having(Axis.MODEL, Placement(copies=4)).cut_axes(layout) == ()


def test_shared_heads_and_ties_are_summed_over_their_holders_alone() -> None:
    layout = Layout(pipe=4, data=2, model=4)
    heads, tie = Placement(copies=2, gradient_in_parts=True), tied([3, 0])
    placements = USUAL.having(Axis.MODEL, heads).having(Axis.PIPE, tie)
    assert tie == Placement(indices=(0, 3), gradient_in_parts=True)
    assert placements.batch_axes(layout) == (Axis.DATA,)
    assert placements.other_sums(layout) == ((Axis.PIPE, tie), (Axis.MODEL, heads))
    first, second = {0, 1, 4, 5, 24, 25, 28, 29}, {2, 3, 6, 7, 26, 27, 30, 31}
    assert holding(layout, placements) == sorted(first | second)
    assert holders(layout, placements, 29) == first
    assert holders(layout, placements, 2) == second
    assert standing(layout, placements) == [0, 2]
    assert standing(layout, placements, spread=1) == [24, 26]  # the first axis takes turns first
