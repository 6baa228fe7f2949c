"""Column- and row-parallel linear layers against one matrix product."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scaling.core.errors import LayoutError
from scaling.core.nn.init import Normal
from scaling.core.nn.linear import (
    ColumnParallelLinear,
    RowParallelLinear,
    enter_model_parallel,
    leave_model_parallel,
    linear,
    new_parameter,
)
from scaling.core.nn.parameter import meta
from scaling.core.topology.topology import Topology
from tests.distributed import run_distributed
from tests.reference.compare import backward, close, gradient_of
from tests.reference.sharding import Weights, compare_layer
from tests.reference.worlds import connected, random, view_of

DOUBLE = torch.float64


def one_product(weights: Weights, x: Tensor) -> Tensor:
    y = x @ weights["weight"].t()
    return y + weights["bias"] if "bias" in weights else y


def compare_linear_layers(rank: int, world_size: int) -> None:
    with connected(model=world_size) as topology:
        for bias, shape in product((True, False), ((12,), (3, 12), (2, 4, 12))):
            x = random(*shape, seed=1)
            options: dict[str, Any] = {"topology": topology, "dtype": DOUBLE, "bias": bias}
            what = f"bias {bias}, shape {shape}:"
            column = ColumnParallelLinear(12, 8, **options)
            compare_layer(column, one_product, x, topology, cut_output=-1, what=f"column {what}")
            column = ColumnParallelLinear(12, 8, gather_output=True, **options)
            compare_layer(column, one_product, x, topology, what=f"column, gathered, {what}")
            row = RowParallelLinear(12, 8, **options)
            compare_layer(row, one_product, x, topology, cut_input=-1, what=f"row {what}")
            row = RowParallelLinear(12, 8, split_input=True, **options)
            compare_layer(row, one_product, x, topology, what=f"row, split here, {what}")
            if len(shape) == 3:
                row = RowParallelLinear(12, 8, sequence_parallel=True, **options)
                cuts = {"cut_input": -1, "cut_output": 1}
                compare_layer(row, one_product, x, topology, **cuts, what=f"row, sequence-parallel, {what}")


@pytest.mark.parametrize("world_size", [2, 4])
def test_layers_cut_over_ranks_compute_the_whole_product(world_size: int) -> None:
    run_distributed(compare_linear_layers, world_size)


class SharedInput(nn.Module):
    """Two column-parallel layers behind one way in, a row-parallel one behind them."""

    def __init__(self, topology: Topology, *, sequence_parallel: bool) -> None:
        super().__init__()
        self.topology = topology
        self.sequence_parallel = sequence_parallel
        column: dict[str, Any] = {"topology": topology, "dtype": DOUBLE, "copy_input": False}
        self.left = ColumnParallelLinear(12, 8, **column)
        self.right = ColumnParallelLinear(12, 8, **column)
        self.back = new_parameter(
            (12, 8), Normal(1.0), dtype=DOUBLE, shard=meta(RowParallelLinear(8, 12, topology=topology).weight).shard
        )

    def forward(self, x: Tensor) -> Tensor:
        x = enter_model_parallel(x, self.topology, sequence_parallel=self.sequence_parallel)
        partial = linear(self.left(x) * self.right(x), self.back)
        return leave_model_parallel(partial, self.topology, sequence_parallel=self.sequence_parallel)


def dense_shared_input(weights: Weights, x: Tensor) -> Tensor:
    left = x @ weights["left.weight"].t() + weights["left.bias"]
    right = x @ weights["right.weight"].t() + weights["right.bias"]
    return (left * right) @ weights["back"].t()


def compare_shared_input(rank: int, world_size: int) -> None:
    with connected(model=world_size) as topology:
        x = random(2, 4, 12, seed=1)
        compare_layer(SharedInput(topology, sequence_parallel=False), dense_shared_input, x, topology)
        layer = SharedInput(topology, sequence_parallel=True)
        compare_layer(layer, dense_shared_input, x, topology, cut_input=1, cut_output=1, what="sequence-parallel")


def test_layers_may_share_one_way_in_and_sum_its_gradient_once() -> None:
    run_distributed(compare_shared_input, 2)


def add_the_bias(rank: int, world_size: int, sequence_parallel: bool) -> float:
    with connected(model=world_size) as topology:
        layer = RowParallelLinear(4, 2, topology=topology, sequence_parallel=sequence_parallel)
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.fill_(0.0 if parameter.dim() == 2 else 1.0)
        result: float = layer(torch.ones(1, 4, 4 // world_size)).detach().unique().item()
        return result


@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_bias_is_added_once(sequence_parallel: bool) -> None:
    assert run_distributed(add_the_bias, 4, sequence_parallel) == [1.0] * 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_on_a_cpu_is_the_float32_product_rounded_once(dtype: torch.dtype) -> None:
    x, weight, bias = (random(*shape, seed=n, dtype=dtype) for n, shape in enumerate([(7, 300), (50, 300), (50,)]))
    for leaf in (x, weight, bias):
        leaf.requires_grad_()
    y = linear(x, weight, bias)
    assert y.dtype == dtype
    wide = [leaf.detach().float().requires_grad_() for leaf in (x, weight, bias)]
    expected = F.linear(*wide)
    assert torch.equal(y, expected.to(dtype))
    gradient = random(7, 50, seed=9, dtype=dtype)
    backward(y, gradient)
    backward(expected, gradient.float())
    for leaf, reference in zip((x, weight, bias), wide, strict=True):
        assert torch.equal(gradient_of(leaf), gradient_of(reference).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_full_precision_is_torchs_own_product(dtype: torch.dtype) -> None:
    x, weight, bias = (random(*shape, seed=n, dtype=dtype) for n, shape in enumerate([(7, 30), (5, 30), (5,)]))
    assert torch.equal(linear(x, weight, bias), F.linear(x, weight, bias))
    assert torch.equal(linear(x, weight), F.linear(x, weight))


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda view: ColumnParallelLinear(8, 10, topology=view), r"out_features of ColumnParallelLinear \(10\)"),
        (lambda view: RowParallelLinear(10, 8, topology=view), r"in_features of RowParallelLinear \(10\)"),
    ],
)
def test_features_that_do_not_divide_are_refused(build: Callable[[Topology], nn.Module], named: str) -> None:
    with pytest.raises(LayoutError, match=named + r" must be divisible by model_parallel_size \(4\)"):
        build(view_of(1, model=4))


def test_one_rank_alone_is_a_linear_layer_of_torch() -> None:
    for layer in (ColumnParallelLinear(6, 4, dtype=DOUBLE), RowParallelLinear(6, 4, dtype=DOUBLE)):
        x = random(3, 6, seed=2)
        close(layer(x), F.linear(x, layer.weight, layer.bias))


def test_a_new_layer_is_filled_with_the_xavier_distribution_of_the_whole_matrix() -> None:
    whole = ColumnParallelLinear(400, 600, bias=True)
    assert float(whole.weight.detach().std()) == pytest.approx((2 / 1000) ** 0.5, rel=0.01)
    assert whole.bias is not None
    assert not whole.bias.any()
    parts = [ColumnParallelLinear(400, 600, topology=view_of(rank, model=4)) for rank in range(4)]
    assert torch.equal(torch.cat([part.weight for part in parts]), whole.weight)
    row = RowParallelLinear(400, 600)
    slices = [RowParallelLinear(400, 600, topology=view_of(rank, model=4)) for rank in range(4)]
    assert torch.equal(torch.cat([part.weight for part in slices], dim=1), row.weight)
