"""Norms of queries and keys: what each rank holds of their weights, and how they round; see also `test_attention`."""

from __future__ import annotations

import copy

import pytest
import torch

from scaling.core.errors import LayoutError
from scaling.core.nn.init import fill
from scaling.core.nn.key_query_norm import NormOverHeads, NormPerHead, RMSNormOverHeads
from scaling.core.nn.norm import LayerNorm, RMSNorm
from scaling.core.nn.parameter import meta
from scaling.core.nn.place import Place
from scaling.core.nn.shard import Heads
from scaling.core.topology.layout import Axis
from scaling.core.topology.placement import CUT, SAME_IN_PARTS
from tests.reference.compare import close
from tests.reference.worlds import random, view_of


@pytest.mark.parametrize("sequence_parallel", [False, True])
@pytest.mark.parametrize(("count", "parts", "replicas"), [(8, 1, 1), (8, 4, 1), (2, 2, 1), (2, 4, 2), (1, 4, 4)])
def test_a_weight_over_all_heads_is_cut_between_heads_and_shared_where_they_are(
    sequence_parallel: bool, count: int, parts: int, replicas: int
) -> None:
    for rank in range(parts):
        place = Place(view_of(rank, model=parts), sequence_parallel=sequence_parallel)
        weight = RMSNormOverHeads(Heads(count, 3), place=place).weight
        (piece,) = meta(weight).pieces
        length = max(count // parts, 1) * 3
        assert (piece.shape, tuple(weight.shape)) == ((count * 3,), (length,))
        assert (piece.box.offset, piece.box.shape) == ((rank // replicas * length,), (length,))
        placement = meta(weight).placements.on(Axis.MODEL)
        first = rank // replicas * replicas
        assert list(placement.holders(rank, parts)) == list(range(first, first + replicas))
        assert placement.gradient_in_parts == (replicas > 1)
        assert (placement == CUT) == (replicas == 1)


def test_heads_that_no_cut_divides_are_refused() -> None:
    with pytest.raises(LayoutError, match=r"6 heads and model_parallel_size \(4\) must divide one the other"):
        RMSNormOverHeads(Heads(6, 4), place=Place(view_of(0, model=4)))


def test_weights_within_heads_are_alike_on_all_ranks_which_see_their_heads_each() -> None:
    place = Place(view_of(1, model=4))
    norm = NormPerHead(RMSNorm(4, place=place), LayerNorm(4, place=place))
    for parameter in (*norm.query.parameters(), *norm.key.parameters()):
        assert meta(parameter).placements.on(Axis.MODEL) == SAME_IN_PARTS


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_a_new_norm_scales_by_one(offset: float) -> None:
    norm = RMSNormOverHeads(Heads(2, 4), epsilon=0.5, weight_offset=offset)
    fill(norm)
    assert norm.weight.eq(1 - offset).all()
    x = random(2, 3, 2, 4, seed=1, dtype=torch.float32)
    expected = x / (x.square().mean((-2, -1), keepdim=True) + 0.5).sqrt()
    query, key = NormOverHeads(norm, copy.deepcopy(norm))(x, x)
    close(query, expected, tolerance=1e-6)
    assert torch.equal(query, key)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_half_precision_is_rounded_once_at_the_end(dtype: torch.dtype, offset: float) -> None:
    # A sum of squares in float16 would overflow; a weight of this size would be lost beside 1 in half precision.
    heads, step = Heads(8, 64), torch.finfo(dtype).eps
    norms = [RMSNormOverHeads(heads, weight_offset=offset, place=Place(dtype=dtype)) for _ in range(2)]
    for norm in norms:
        fill(norm)
        norm.weight.data.fill_(1 - offset + 0.45 * step * offset)
    q, k = ((random(2, 5, 8, 64, seed=seed) * 300).to(dtype) for seed in (1, 2))
    for x, found in zip((q, k), NormOverHeads(*norms)(q, k), strict=True):
        wide = x.double()
        exact = wide / (wide.square().mean((-2, -1), keepdim=True) + 1e-5).sqrt() * (1 + 0.45 * step * offset)
        assert found.dtype == dtype
        large = exact.abs() > 2**-6  # smaller numbers of float16 have fewer digits
        assert ((found.double() - exact).abs() <= exact.abs() * step * 0.505)[large].all()
