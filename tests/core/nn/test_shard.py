"""How model ranks hold heads: cut between heads, or shared by neighbours."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling.core.errors import LayoutError
from scaling.core.nn.linear import ColumnParallelLinear
from scaling.core.nn.parameter import meta
from scaling.core.nn.place import Place
from scaling.core.nn.shard import Heads, Shard, even_shard, padded_shard
from scaling.core.topology.layout import Axis
from tests.reference.worlds import view_of


@given(st.integers(1, 9), st.integers(0, 9))
def test_equal_parts_follow_each_other_and_a_remainder_is_refused(parts: int, length: int) -> None:
    found = [even_shard(parts * length, parts, index, dim=1, what="features") for index in range(parts)]
    assert found == [Shard(dim=1, offset=index * length, length=length, local_length=length) for index in range(parts)]
    if parts > 1:
        with pytest.raises(
            LayoutError, match=rf"features \({parts * length + 1}\) must be divisible by .* \({parts}\)"
        ):
            even_shard(parts * length + 1, parts, 0, dim=1, what="features")


@given(st.integers(0, 40), st.integers(1, 9))
def test_padded_parts_hold_every_element_once_and_are_equally_long(size: int, parts: int) -> None:
    found = [padded_shard(size, parts, index, dim=0) for index in range(parts)]
    held = [number for shard in found for number in range(shard.offset, shard.offset + shard.length)]
    assert held == list(range(size))
    assert {shard.local_length for shard in found} == {-(-size // parts)}
    assert all(0 <= shard.length <= shard.local_length and shard.dim == 0 for shard in found)
    assert sorted((shard.length for shard in found), reverse=True) == [shard.length for shard in found]


@st.composite
def cuts(draw: st.DrawFn) -> tuple[Heads, int]:
    """Draw heads, and a number of ranks that can hold them."""
    few, times, size = draw(st.integers(1, 6)), draw(st.integers(1, 6)), draw(st.integers(1, 9))
    count, parts = draw(st.permutations([few, few * times]))
    return Heads(count, size), parts


@given(cuts())
def test_ranks_hold_every_head_whole_and_equally_often(cut: tuple[Heads, int]) -> None:
    heads, parts = cut
    held = [heads.local(parts, index) for index in range(parts)]
    assert {len(own) for own in held} == {max(1, heads.count // parts)}
    times = max(1, parts // heads.count)
    in_order = [number for number in range(heads.count) for _ in range(times)]
    assert [number for own in held for number in own] == in_order


@given(cuts())
def test_the_rows_of_a_rank_are_those_of_its_heads(cut: tuple[Heads, int]) -> None:
    heads, parts = cut
    assert heads.features == heads.count * heads.size
    for index in range(parts):
        shard, own = heads.shard(parts, index), heads.local(parts, index)
        assert shard.dim == 0
        assert (shard.offset, shard.length) == (own.start * heads.size, len(own) * heads.size)
        assert shard.local_length == shard.length  # no padding


@given(cuts())
def test_a_shard_says_how_many_neighbours_hold_the_same_head(cut: tuple[Heads, int]) -> None:
    heads, parts = cut
    held = [heads.local(parts, index) for index in range(parts)]
    for index, own in enumerate(held):
        replicas = heads.shard(parts, index).replicas
        first = index // replicas * replicas
        assert [other for other, theirs in enumerate(held) if theirs == own] == list(range(first, first + replicas))


@pytest.mark.parametrize(("count", "parts"), [(4, 6), (6, 4), (3, 2), (8, 3), (2, 5)])
def test_heads_that_cannot_be_cut_or_shared_evenly_are_refused(count: int, parts: int) -> None:
    refused = pytest.raises(
        LayoutError,
        match=rf"{count} heads and model_parallel_size \({parts}\) must divide one the other; choose a "
        rf"model_parallel_size that divides or is a multiple of {count}",
    )
    with refused:
        Heads(count, 8).shard(parts, 0)
    with refused:
        Heads(count, 8).local(parts, 0)
    with refused:
        ColumnParallelLinear(4, Heads(count, 8), place=Place(view_of(0, model=parts)))


@given(cuts())
def test_a_layer_of_heads_is_cut_as_they_are_and_sums_the_gradients_of_shared_ones(cut: tuple[Heads, int]) -> None:
    heads, parts = cut
    for index in {0, parts // 2, parts - 1}:
        layer, shard = (
            ColumnParallelLinear(4, heads, place=Place(view_of(index, model=parts))),
            heads.shard(parts, index),
        )
        assert layer.output_sizes == [shard.length]
        for parameter, rest in ((layer.weight, (4,)), (layer.bias, ())):
            assert parameter is not None
            (piece,) = meta(parameter).pieces
            assert piece.shape == (heads.features, *rest)
            assert (piece.box.offset[0], piece.box.shape) == (shard.offset, (shard.length, *rest))
            placement = meta(parameter).placements.on(Axis.MODEL)
            first = index // shard.replicas * shard.replicas
            assert list(placement.holders(index, parts)) == list(range(first, first + shard.replicas))
            assert placement.gradient_in_parts is (shard.replicas > 1)
