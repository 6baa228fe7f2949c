"""The ways to queries, keys and values: fused or apart, cut or shared by heads, and where old checkpoints have them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from scaling.core.boxes import whole
from scaling.core.errors import LayoutError
from scaling.core.nn.attention import FUSED, attention_projections
from scaling.core.nn.init import fill as initialise
from scaling.core.nn.parameter import meta
from scaling.core.nn.place import Place
from scaling.core.nn.shard import Heads
from scaling.core.topology.layout import Axis
from scaling.core.topology.placement import CUT
from tests.reference.sharding import fill, whole_weights
from tests.reference.worlds import view_of

HIDDEN, HEADS, HEAD_DIM = 32, 8, 4
NAMES = ("query", "key", "value")
KINDS = ("weight", "bias")


class Projections(nn.Module):
    """The layers under the names they have in attention."""

    def __init__(self, *, kv_heads: int = HEADS, fused: bool = False, rank: int = 0, parts: int = 1) -> None:
        super().__init__()
        query, key_value = Heads(HEADS, HEAD_DIM), Heads(kv_heads, HEAD_DIM)
        heads = {"query": query, "key": key_value, "value": key_value}
        self.place = Place(view_of(rank, model=parts))
        self.layers = attention_projections(HIDDEN, heads, place=self.place, fused=fused)
        for name, layer in self.layers.items():
            self.add_module(name, layer)

    def joined(self, kind: str) -> Tensor:
        """Return the values of all layers, one behind the other."""
        return torch.cat([layer.get_parameter(kind).detach() for layer in self.layers.values()])


@pytest.mark.parametrize(("kv_heads", "parts", "rank"), [(8, 1, 0), (8, 4, 3), (8, 8, 5), (4, 1, 0), (4, 4, 2)])
def test_both_forms_begin_with_the_same_values(kv_heads: int, parts: int, rank: int) -> None:
    forms = [Projections(kv_heads=kv_heads, fused=fused, rank=rank, parts=parts) for fused in (True, False)]
    assert [list(form.layers) for form in forms] == [[FUSED], list(NAMES)]
    for form in forms:
        initialise(form, seed=7)
    assert forms[0].joined("weight").any()
    for kind in KINDS:
        assert torch.equal(forms[0].joined(kind), forms[1].joined(kind))
    sizes = [HEADS // parts * HEAD_DIM, *[kv_heads // parts * HEAD_DIM] * 2]
    assert [size for form in forms for layer in form.layers.values() for size in layer.output_sizes] == sizes * 2


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_ranks_that_share_a_head_hold_the_same_rows_and_say_so(kv_heads: int) -> None:
    every = [Projections(kv_heads=kv_heads, rank=rank, parts=8) for rank in range(8)]
    for one in every:
        fill(one)
    replicas = 8 // kv_heads
    for rank, one in enumerate(every):
        first = rank // replicas * replicas
        for name in ("key", "value"):
            own, shared = one.layers[name], every[first].layers[name]
            assert torch.equal(own.weight, shared.weight)
            for parameter in own.parameters():
                placement = meta(parameter).placements.on(Axis.MODEL)
                assert list(placement.holders(rank, 8)) == list(range(first, first + replicas))
                assert placement.gradient_in_parts
        for parameter in one.layers["query"].parameters():
            placement = meta(parameter).placements.on(Axis.MODEL)
            assert list(placement.holders(rank, 8)) == [rank]
            assert placement == CUT
    heads = [every[rank].layers["key"].weight.detach() for rank in range(0, 8, replicas)]
    alone = Projections(kv_heads=kv_heads)
    fill(alone)
    assert torch.equal(torch.cat(heads), alone.layers["key"].weight)


def test_a_fused_weight_has_the_heads_of_a_rank_behind_one_another_so_that_a_cut_by_heads_is_one_of_rows() -> None:
    parts = [Projections(fused=True, rank=rank, parts=4) for rank in range(4)]
    alone = Projections(fused=True)
    for one in (*parts, alone):
        fill(one)
    for index, rows in enumerate(alone.joined("weight").chunk(3)):
        assert torch.equal(torch.cat([part.joined("weight").chunk(3)[index] for part in parts]), rows)


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_projections_of_which_ranks_share_some_are_not_fused(kv_heads: int) -> None:
    with pytest.raises(LayoutError, match="query, key, value cannot be fused: some of them are shared"):
        Projections(kv_heads=kv_heads, fused=True, parts=4)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("parts", [1, 4])
def test_the_first_checkpoint_format_has_equally_many_heads_in_one_tensor_grouped_by_head(
    fused: bool, parts: int
) -> None:
    alone = Projections(fused=fused)
    fill(alone)
    weights = {name: tensor.detach() for name, tensor in whole_weights(alone, alone.place.topology).items()}
    old = {
        f"query_key_value.{kind}": torch.stack(
            [weights[f"{name}.{kind}"].unflatten(0, (HEADS, HEAD_DIM)) for name in NAMES], dim=1
        ).flatten(0, 2)
        for kind in KINDS
    }
    found = {key: torch.zeros_like(tensor) for key, tensor in old.items()}
    for rank in range(parts):
        one = Projections(fused=fused, rank=rank, parts=parts)
        fill(one)
        for parameter in one.parameters():
            for piece in meta(parameter).pieces:
                assert piece.former is not None
                there = found[piece.former.key]
                assert there.shape == piece.former.shape
                for own, former in piece.former.pieces(piece.box):
                    values = piece.local(parameter.detach())[own.slices(piece.box)]
                    there[former.slices(whole(there.shape))] += values  # twice would show
    assert all(torch.equal(found[key], tensor) for key, tensor in old.items())


@pytest.mark.parametrize("kv_heads", [1, 4])
def test_the_first_checkpoint_format_has_fewer_key_value_heads_as_they_are_now(kv_heads: int) -> None:
    for parameter in Projections(kv_heads=kv_heads).parameters():
        assert all(piece.former is None for piece in meta(parameter).pieces)
