"""Feed-forward blocks against their formulas."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from scaling.core.nn.init import fill
from scaling.core.nn.linear import ColumnParallelLinear, RowParallelLinear
from scaling.core.nn.mlp import ParallelMLP, ParallelSwiGLUMLP
from scaling.core.nn.place import Place
from tests.distributed import run_distributed
from tests.reference import dense
from tests.reference.compare import close
from tests.reference.sharding import GATHER, SCATTER, SUM, compare_layer, whole_weights
from tests.reference.worlds import connected, random, view_of

HIDDEN, INTERMEDIATE = 12, 32
WAYS_IN = ("dense_in", "siglu_weight")


def plain(place: Place, *, bias: bool = True) -> ParallelMLP:
    dense_in = ColumnParallelLinear(HIDDEN, INTERMEDIATE, place=place, bias=bias)
    return ParallelMLP(dense_in, RowParallelLinear(INTERMEDIATE, HIDDEN, place=place, bias=bias))


def gated(place: Place, *, bias: bool = True, fused: bool = False) -> ParallelSwiGLUMLP:
    if fused:
        table = dict.fromkeys(WAYS_IN, INTERMEDIATE)
        ways_in = {"both": ColumnParallelLinear(HIDDEN, table, place=place, bias=bias)}
    else:
        ways_in = {name: ColumnParallelLinear(HIDDEN, INTERMEDIATE, place=place, bias=bias) for name in WAYS_IN}
    return ParallelSwiGLUMLP(ways_in, RowParallelLinear(INTERMEDIATE, HIDDEN, place=place, bias=bias))


def compare_blocks(rank: int, world_size: int) -> None:
    with connected(model=world_size) as topology:
        x = random(2, 4, HIDDEN, seed=1)
        for bias, sequence_parallel in product((True, False), (False, True)):
            place, cut = Place(topology, torch.float64, sequence_parallel), 1 if sequence_parallel else None
            for name, layer, formula in (
                ("MLP", plain(place, bias=bias), dense.mlp),
                ("SwiGLU", gated(place, bias=bias), dense.swiglu),
                ("fused SwiGLU", gated(place, bias=bias, fused=True), dense.swiglu),
            ):
                what = f"{name}, bias {bias}, sequence-parallel {sequence_parallel}:"
                messages = compare_layer(layer, formula, x, topology, cut_input=cut, cut_output=cut, what=what)
                once = [GATHER, SCATTER, GATHER, SCATTER] if sequence_parallel else [SUM, SUM]
                assert messages == (once if world_size > 1 else []), what


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_blocks_follow_their_formulas(world_size: int) -> None:
    if world_size == 1:
        compare_blocks(0, 1)
    else:
        run_distributed(compare_blocks, world_size)


def test_one_way_in_is_two_behind_one_another_to_checkpoints_and_initial_values() -> None:
    two, one = gated(Place()), gated(Place(), fused=True)
    for layer in (two, one):
        fill(layer, seed=5)
    assert [name for name, _ in one.named_parameters()] == [
        *("both.weight", "both.bias"),
        *("dense_out.weight", "dense_out.bias"),
    ]
    weights = [whole_weights(layer, Place().topology) for layer in (two, one)]
    assert list(weights[0]) == [f"{name}.{kind}" for name in (*WAYS_IN, "dense_out") for kind in ("weight", "bias")]
    assert set(weights[0]) == set(weights[1])
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    x = random(2, 4, HIDDEN, seed=1, dtype=torch.float32)
    close(one(x), two(x), tolerance=1e-6)


def test_the_activation_is_the_factor_of_the_first_way_in() -> None:
    for fused in (False, True):
        layer = gated(Place(), fused=fused)
        fill(layer)
        layer.activation = torch.zeros_like
        assert not layer(random(2, 4, HIDDEN, seed=1, dtype=torch.float32)).any()
        layer.activation = torch.ones_like
        weights = whole_weights(layer, Place().topology)
        x = random(2, 4, HIDDEN, seed=1, dtype=torch.float32)
        ungated = dense.affine(weights, "dense_out", dense.affine(weights, "siglu_weight", x))
        close(layer(x), ungated, tolerance=1e-6)


@pytest.mark.parametrize("rank", range(4))
def test_a_rank_holds_its_part_of_both_outputs_of_a_fused_way_in(rank: int) -> None:
    place = Place(view_of(rank, model=4))
    apart, together = gated(place), gated(place, fused=True)
    for layer in (apart, together):
        fill(layer)
    parts = [apart.get_parameter(f"{name}.weight").detach() for name in WAYS_IN]
    assert torch.equal(together.get_parameter("both.weight"), torch.cat(parts))
