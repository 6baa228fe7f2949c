"""Norms against their formulas, and their gradients where each rank sees a slice of the sequence."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from scaling.core.nn.init import fill
from scaling.core.nn.norm import LayerNorm, RMSNorm
from scaling.core.nn.parameter import meta
from scaling.core.nn.place import Place
from scaling.core.topology.layout import Axis
from tests.distributed import run_distributed
from tests.reference import dense
from tests.reference.compare import close
from tests.reference.sharding import Weights, compare_layer
from tests.reference.worlds import connected, random, view_of

DOUBLE = torch.float64


def compare_norms(rank: int, world_size: int) -> None:
    with connected(model=world_size) as topology:
        x = random(2, 8, 12, seed=1) * 3 + 1
        for sequence_parallel, epsilon in product((False, True), (1e-5, 0.3)):
            options: dict[str, Any] = {"epsilon": epsilon, "place": Place(topology, DOUBLE, sequence_parallel)}
            for norm in (
                RMSNorm(12, **options),
                RMSNorm(12, weight_offset=1.0, **options),
                LayerNorm(12, **options),
                LayerNorm(12, bias=False, **options),
                LayerNorm(12, weight=False, **options),
                LayerNorm(12, weight=False, bias=False, **options),
            ):
                cut = 1 if sequence_parallel else None
                compare_layer(norm, partial(formula_of(norm), epsilon), x, topology, cut_input=cut, cut_output=cut)


def formula_of(norm: RMSNorm | LayerNorm) -> Callable[[float, Weights, Tensor], Tensor]:
    if isinstance(norm, RMSNorm):
        offset = norm.weight_offset
        return lambda epsilon, weights, x: dense.rms_norm(x, offset + weights["weight"], epsilon)
    ones = torch.ones(12, dtype=DOUBLE)
    return lambda epsilon, weights, x: dense.layer_norm(x, weights.get("weight", ones), weights.get("bias"), epsilon)


def test_norms_follow_their_formulas_alone_and_on_slices_of_the_sequence() -> None:
    compare_norms(0, 1)
    run_distributed(compare_norms, 4)


@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_gradients_are_summed_over_the_model_axis_exactly_where_ranks_see_slices(sequence_parallel: bool) -> None:
    place = Place(view_of(1, model=4), sequence_parallel=sequence_parallel)
    for norm in (RMSNorm(4, place=place), LayerNorm(4, place=place)):
        for parameter in norm.parameters():
            placement = meta(parameter).placements.on(Axis.MODEL)
            assert placement.gradient_in_parts is sequence_parallel
            assert list(placement.holders(1, 4)) == [0, 1, 2, 3]


def test_a_new_norm_scales_by_one_and_shifts_by_nothing() -> None:
    norm, other, around_zero = LayerNorm(8), RMSNorm(8), RMSNorm(8, weight_offset=1.0)
    for one in (norm, other, around_zero):
        fill(one)
    assert norm.weight is not None
    assert norm.bias is not None
    assert norm.weight.eq(1).all()
    assert other.weight.eq(1).all()
    assert not norm.bias.any()
    assert not around_zero.weight.any()
    assert not dict(LayerNorm(8, weight=False, bias=False).named_parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_statistics_of_half_precision_are_taken_in_float32(dtype: torch.dtype) -> None:
    # A mean of squares in float16 would overflow, one in bfloat16 would lose the small elements.
    x = (random(4, 4096, seed=1) * 300).to(dtype)
    step = torch.finfo(dtype).eps
    ones = torch.ones(4096, dtype=DOUBLE)
    place = Place(dtype=dtype)
    norms = RMSNorm(4096, place=place), LayerNorm(4096, place=place)
    for norm in norms:
        fill(norm)
    close(norms[0](x), dense.rms_norm(x.double(), ones), tolerance=step)
    close(norms[1](x), dense.layer_norm(x.double(), ones, None), tolerance=step)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_weight_around_zero_keeps_what_half_precision_loses_beside_one(dtype: torch.dtype) -> None:
    x, step = random(4, 512, seed=1).to(dtype), torch.finfo(dtype).eps
    norm = RMSNorm(512, weight_offset=1.0, place=Place(dtype=dtype))
    fill(norm)
    norm.weight.data.fill_(0.45 * step)
    found, exact = norm(x), dense.rms_norm(x.double(), torch.tensor(1 + 0.45 * step, dtype=DOUBLE))
    assert found.dtype == dtype
    large = exact.abs() > 2**-6  # smaller numbers of float16 have fewer digits
    assert ((found.double() - exact).abs() <= exact.abs() * step * 0.505)[large].all()
