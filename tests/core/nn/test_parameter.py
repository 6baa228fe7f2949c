"""Descriptions of parameters, and how dimensions are cut."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from scaling.core.boxes import Box, Former, whole
from scaling.core.errors import LayoutError
from scaling.core.nn.init import Normal, fill
from scaling.core.nn.linear import ColumnParallelLinear
from scaling.core.nn.parameter import (
    Initializer,
    ParameterMeta,
    Piece,
    annotate,
    fused_parameter,
    meta,
    named_parameters_with_meta,
    new_parameter,
    share,
    update_meta,
)
from scaling.core.nn.place import Place
from scaling.core.nn.shard import Shard, even_shard, padded_shard
from scaling.core.topology.layout import Axis
from scaling.core.topology.placement import CUT, SAME, SAME_IN_PARTS, USUAL, tied
from tests.reference.worlds import view_of


def whole_piece(*shape: int, initializer: Initializer | None = None) -> Piece:
    return Piece(shape=shape, box=whole(shape), place=(0,) * len(shape), initializer=initializer)


def test_a_parameter_nobody_described_is_whole_on_every_rank() -> None:
    description = meta(nn.Parameter(torch.zeros(3, 4)))
    assert description == ParameterMeta(pieces=(whole_piece(3, 4),))
    assert description.placements == USUAL
    assert list(description.placements.on(Axis.MODEL).holders(5, 8)) == list(range(8))
    assert not description.placements.on(Axis.MODEL).gradient_in_parts


def test_a_description_stays_with_its_parameter() -> None:
    piece = Piece(shape=(8,), box=Box((4,), (4,)), place=(0,), initializer=None)
    described = ParameterMeta(name="w", pieces=(piece,), placements=USUAL.having(Axis.MODEL, CUT))
    parameter = nn.Parameter(torch.zeros(4))
    assert annotate(parameter, described) is parameter
    assert meta(parameter) == described
    update_meta(parameter, name="other", lr_scale=2.0)
    assert meta(parameter).name == "other"
    assert meta(parameter).lr_scale == 2.0
    assert meta(parameter).pieces == described.pieces
    share(parameter, Axis.PIPE, tied([0, 2]))
    assert meta(parameter).placements == USUAL.having(Axis.MODEL, CUT).having(Axis.PIPE, tied([0, 2]))
    assert meta(parameter).lr_scale == 2.0


@pytest.mark.parametrize("parts", [1, 2, 4])
@pytest.mark.parametrize("in_parts", [False, True])
def test_a_parameter_lies_on_as_many_ranks_as_its_shard_says(parts: int, in_parts: bool) -> None:
    shard = Shard(dim=0, offset=0, length=2, local_length=2, replicas=parts)
    parameter = new_parameter((8,), Normal(1.0), shard=shard, gradient_in_parts=in_parts)
    placement = meta(parameter).placements.on(Axis.MODEL)
    assert len(placement.holders(0, 4)) == parts
    assert placement.gradient_in_parts is in_parts
    assert meta(parameter).placements == USUAL.having(Axis.MODEL, placement)


@pytest.mark.parametrize("in_parts", [False, True])
def test_a_parameter_without_a_shard_lies_on_all_ranks(in_parts: bool) -> None:
    parameter = new_parameter((8, 3), Normal(1.0), gradient_in_parts=in_parts)
    assert meta(parameter).placements.on(Axis.MODEL) == (SAME_IN_PARTS if in_parts else SAME)
    assert meta(parameter).pieces == (whole_piece(8, 3, initializer=Normal(1.0)),)


@pytest.mark.parametrize("dim", [0, 1])
def test_a_new_parameter_is_described_and_takes_no_memory(dim: int) -> None:
    shape = (400_000, 400_000)
    shard = padded_shard(shape[dim], 3, 2, dim=dim)
    parameter = new_parameter(shape, Normal(1.0), shard=shard, dtype=torch.bfloat16)
    assert parameter.is_meta
    assert parameter.dtype == torch.bfloat16
    assert parameter.requires_grad
    assert parameter.shape[dim] == shard.local_length == 133_334
    assert parameter.shape[1 - dim] == 400_000
    (piece,) = meta(parameter).pieces
    assert piece.shape == shape
    assert (piece.box.offset[dim], piece.box.shape[dim]) == (266_668, 133_332)  # the rest is padding
    assert (piece.box.offset[1 - dim], piece.box.shape[1 - dim]) == (0, 400_000)
    assert (piece.place, piece.key, piece.label, meta(parameter).name) == ((0, 0), "", "", "")


def test_a_parameter_without_dimensions_is_a_piece_too() -> None:
    parameter = new_parameter((), Normal(1.0))
    assert parameter.shape == ()
    assert meta(parameter).pieces == (whole_piece(initializer=Normal(1.0)),)


@given(
    lengths=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=5),
    rest=st.sampled_from([(), (3,), (2, 3)]),
)
def test_pieces_of_a_fused_parameter_lie_behind_one_another(
    lengths: list[tuple[int, int]], rest: tuple[int, ...]
) -> None:
    parts = {}
    for number, (length, count) in enumerate(lengths):
        shard = even_shard(length * count, count, count - 1, dim=0, what="rows")
        parts[f"part_{number}"] = ((length * count, *rest), shard, Normal(float(number)))
    parameter = fused_parameter(parts)
    pieces = meta(parameter).pieces
    assert [piece.label for piece in pieces] == list(parts)
    numbered = torch.arange(parameter.numel()).view(parameter.shape)
    assert torch.equal(torch.cat([piece.local(numbered) for piece in pieces]), numbered)
    for number, (piece, (length, count)) in enumerate(zip(pieces, lengths, strict=True)):
        assert piece.shape == (length * count, *rest)
        assert piece.box == Box(((count - 1) * length, *(0 for _ in rest)), (length, *rest))
        assert piece.initializer == Normal(float(number))
        view = piece.local(numbered)
        assert view.untyped_storage().data_ptr() == numbered.untyped_storage().data_ptr()


def test_pieces_that_ranks_hold_in_other_ways_are_no_parameter() -> None:
    half = even_shard(8, 2, 0, dim=0, what="rows")
    with pytest.raises(LayoutError, match="a, b cannot be fused"):
        fused_parameter({"a": ((8, 3), half, Normal(1.0)), "b": ((8, 3), None, Normal(1.0))})


def test_a_name_in_the_model_names_the_pieces_as_if_they_stood_alone() -> None:
    former = Former(shape=(12, 3), block=2, stride=4, offset=0)
    pieces = tuple(
        replace(whole_piece(4, 3), label=label, former=former, former_label="old") for label in ("", "query", "key")
    )
    described = ParameterMeta(pieces=pieces)
    named = described.named("layers.2.attention.fused.weight")
    assert named.name == "layers.2.attention.fused.weight"
    assert [piece.key for piece in named.pieces] == [
        "layers.2.attention.fused.weight",
        "layers.2.attention.query.weight",
        "layers.2.attention.key.weight",
    ]
    assert {piece.former.key for piece in named.pieces if piece.former} == {"layers.2.attention.old.weight"}
    assert [piece.key for piece in described.named("weight").pieces] == ["weight", "query.weight", "key.weight"]
    assert [piece.key for piece in described.named("fused.bias").pieces] == ["fused.bias", "query.bias", "key.bias"]
    assert named.named("elsewhere.fused.weight") == described.named("elsewhere.fused.weight")


@given(length=st.integers(1, 50), parts=st.integers(1, 12))
def test_even_shards_cover_a_dimension_once(length: int, parts: int) -> None:
    shards = [even_shard(length * parts, parts, index, dim=1, what="features") for index in range(parts)]
    assert [row for s in shards for row in range(s.offset, s.offset + s.length)] == list(range(length * parts))
    assert all(s.dim == 1 and s.local_length == s.length and s.replicas == 1 for s in shards)


def test_a_remainder_is_refused_by_name() -> None:
    with pytest.raises(LayoutError, match=r"hidden_size \(10\) must be divisible by model_parallel_size \(4\)"):
        even_shard(10, 4, 0, dim=0, what="hidden_size")


def test_shared_parameters_are_yielded_once() -> None:
    module = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    module[1].weight = module[0].weight
    assert [name for name, _, _ in named_parameters_with_meta(module)] == ["0.weight", "0.bias", "1.bias"]


def test_descriptions_can_be_copied_and_pickled() -> None:
    description = ParameterMeta(
        name="w", pieces=(whole_piece(8, initializer=Normal(1.0)),), placements=USUAL.having(Axis.PIPE, tied([0, 1]))
    )
    assert pickle.loads(pickle.dumps(description)) == copy.deepcopy(description) == description
    assert len({description, copy.deepcopy(description)}) == 1


@pytest.mark.parametrize("filled", [False, True])
def test_a_copied_layer_keeps_the_descriptions_of_its_parameters(filled: bool) -> None:
    layer = ColumnParallelLinear(4, 8, place=Place(view_of(1, model=2)))
    if filled:
        fill(layer)
    twice = copy.deepcopy(nn.ModuleList([layer, layer]))
    copied = twice[0]
    assert copied is twice[1]
    assert isinstance(copied, ColumnParallelLinear)
    assert copied.weight is not layer.weight
    for one, other in zip(copied.parameters(), layer.parameters(), strict=True):
        assert meta(one) == meta(other)
        assert meta(one).placements.on(Axis.MODEL) == CUT
    for each in (layer, copied):
        fill(each)
    assert torch.equal(copied.weight, layer.weight)
    assert copied.weight.data_ptr() != layer.weight.data_ptr()
