"""Column- and row-parallel linear layers against one matrix product."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scaling.core.collectives.autograd import gather_features, split_features
from scaling.core.errors import LayoutError
from scaling.core.nn.init import Normal, fill, xavier_normal
from scaling.core.nn.linear import ColumnParallelLinear, RowParallelLinear, linear, project_all
from scaling.core.nn.parameter import meta, new_parameter
from scaling.core.nn.place import Place, enter_model_parallel, leave_model_parallel
from scaling.core.nn.shard import Heads, even_shard
from scaling.core.topology.layout import Axis
from scaling.core.topology.placement import CUT, USUAL, Placement
from scaling.core.topology.topology import Topology
from tests.distributed import run_distributed
from tests.reference import dense
from tests.reference.compare import backward, close, gradient_of
from tests.reference.sharding import GATHER, SCATTER, SUM, Weights, compare_layer, whole_weights
from tests.reference.worlds import connected, random, view_of

DOUBLE = torch.float64


def one_product(weights: Weights, x: Tensor) -> Tensor:
    y = x @ weights["weight"].t()
    return y + weights["bias"] if "bias" in weights else y


class Whole(nn.Module):
    """A layer between activations that all ranks hold: its input cut or its output joined here."""

    def __init__(self, layer: ColumnParallelLinear | RowParallelLinear) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        group = self.layer.place.group
        if isinstance(self.layer, RowParallelLinear):
            return self.layer(split_features(x, group))  # type: ignore[no-any-return]  # nn.Module.__call__ is Any
        return gather_features(self.layer(x), group)


def compare_linear_layers(rank: int, world_size: int) -> None:
    with connected(model=world_size) as topology:
        for bias, shape in product((True, False), ((12,), (3, 12), (2, 4, 12))):
            x = random(*shape, seed=1)
            options: dict[str, Any] = {"place": Place(topology, DOUBLE), "bias": bias}
            what = f"bias {bias}, shape {shape}:"
            column = ColumnParallelLinear(12, 8, **options)
            compare_layer(column, one_product, x, topology, cut_output=-1, what=f"column {what}")
            whole = Whole(ColumnParallelLinear(12, 8, **options))
            compare_layer(whole, one_layer, x, topology, what=f"column, gathered, {what}")
            row = RowParallelLinear(12, 8, **options)
            compare_layer(row, one_product, x, topology, cut_input=-1, what=f"row {what}")
            whole = Whole(RowParallelLinear(12, 8, **options))
            compare_layer(whole, one_layer, x, topology, what=f"row, split here, {what}")
            if len(shape) == 3:
                row = RowParallelLinear(12, 8, place=Place(topology, DOUBLE, sequence_parallel=True), bias=bias)
                cuts = {"cut_input": -1, "cut_output": 1}
                compare_layer(row, one_product, x, topology, **cuts, what=f"row, sequence-parallel, {what}")


def one_layer(weights: Weights, x: Tensor) -> Tensor:
    return dense.affine(weights, "layer", x)


@pytest.mark.parametrize("world_size", [2, 4])
def test_layers_cut_over_ranks_compute_the_whole_product(world_size: int) -> None:
    run_distributed(compare_linear_layers, world_size)


class SharedInput(nn.Module):
    """Two column-parallel layers behind one way in, a row-parallel one behind them."""

    def __init__(self, topology: Topology, *, sequence_parallel: bool) -> None:
        super().__init__()
        self.place = Place(topology, DOUBLE, sequence_parallel)
        self.left = ColumnParallelLinear(12, 8, place=self.place)
        self.right = ColumnParallelLinear(12, 8, place=self.place)
        shard = even_shard(8, self.place.parts, self.place.index, dim=1, what="features")
        self.back = new_parameter((12, 8), Normal(1.0), dtype=DOUBLE, shard=shard)

    def forward(self, x: Tensor) -> Tensor:
        x = enter_model_parallel(x, self.place)
        partial = linear(self.left(x, entered=True) * self.right(x, entered=True), self.back)
        return leave_model_parallel(partial, self.place)


def dense_shared_input(weights: Weights, x: Tensor) -> Tensor:
    left = x @ weights["left.weight"].t() + weights["left.bias"]
    right = x @ weights["right.weight"].t() + weights["right.bias"]
    return (left * right) @ weights["back"].t()


def compare_shared_input(rank: int, world_size: int) -> None:
    with connected(model=world_size) as topology:
        x = random(2, 4, 12, seed=1)
        layer = SharedInput(topology, sequence_parallel=False)
        assert compare_layer(layer, dense_shared_input, x, topology) == [SUM, SUM]
        layer = SharedInput(topology, sequence_parallel=True)
        cuts = {"cut_input": 1, "cut_output": 1}
        messages = compare_layer(layer, dense_shared_input, x, topology, **cuts, what="sequence-parallel")
        assert messages == [GATHER, SCATTER, GATHER, SCATTER]


def test_layers_may_share_one_way_in_and_sum_its_gradient_once() -> None:
    run_distributed(compare_shared_input, 2)


def add_the_bias(rank: int, world_size: int, sequence_parallel: bool) -> float:
    with connected(model=world_size) as topology:
        layer = RowParallelLinear(4, 2, place=Place(topology, sequence_parallel=sequence_parallel))
        fill(layer)
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


@pytest.mark.parametrize("frozen", [False, True])
def test_half_precision_on_a_cpu_keeps_no_wider_copies_for_the_backward_pass(frozen: bool) -> None:
    x, weight = (random(*shape, seed=n, dtype=torch.bfloat16) for n, shape in enumerate([(7, 300), (50, 300)]))
    kept: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    x.requires_grad_()
    weight.requires_grad_(not frozen)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        linear(x, weight)
    assert {tensor.data_ptr() for tensor in kept} == {weight.data_ptr(), *([] if frozen else [x.data_ptr()])}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_full_precision_is_torchs_own_product(dtype: torch.dtype) -> None:
    x, weight, bias = (random(*shape, seed=n, dtype=dtype) for n, shape in enumerate([(7, 30), (5, 30), (5,)]))
    assert torch.equal(linear(x, weight, bias), F.linear(x, weight, bias))
    assert torch.equal(linear(x, weight), F.linear(x, weight))


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda view: ColumnParallelLinear(8, 10, place=Place(view)), r"out_features of ColumnParallelLinear \(10\)"),
        (lambda view: RowParallelLinear(10, 8, place=Place(view)), r"in_features of RowParallelLinear \(10\)"),
    ],
)
def test_features_that_do_not_divide_are_refused(build: Callable[[Topology], nn.Module], named: str) -> None:
    with pytest.raises(LayoutError, match=named + r" must be divisible by model_parallel_size \(4\)"):
        build(view_of(1, model=4))


def test_one_rank_alone_is_a_linear_layer_of_torch() -> None:
    place = Place(dtype=DOUBLE)
    for layer in (ColumnParallelLinear(6, 4, place=place), RowParallelLinear(6, 4, place=place)):
        fill(layer)
        x = random(3, 6, seed=2)
        close(layer(x), F.linear(x, layer.weight, layer.bias))


def test_a_new_layer_is_filled_with_the_xavier_distribution_of_the_whole_matrix() -> None:
    whole = ColumnParallelLinear(400, 600, bias=True)
    fill(whole)
    assert float(whole.weight.detach().std()) == pytest.approx((2 / 1000) ** 0.5, rel=0.01)
    assert whole.bias is not None
    assert not whole.bias.any()
    places = [Place(view_of(rank, model=4)) for rank in range(4)]
    parts = [ColumnParallelLinear(400, 600, place=place) for place in places]
    row = RowParallelLinear(400, 600)
    slices = [RowParallelLinear(400, 600, place=place) for place in places]
    for layer in (*parts, row, *slices):
        fill(layer)
    assert torch.equal(torch.cat([part.weight for part in parts]), whole.weight)
    assert torch.equal(torch.cat([part.weight for part in slices], dim=1), row.weight)


OUTPUTS: Mapping[str, int | Heads] = {"a": 8, "b": Heads(4, 3), "c": 16}


class Apart(nn.Module):
    """The outputs of a fused layer, from a layer for each."""

    def __init__(self, place: Place, *, bias: bool) -> None:
        super().__init__()
        self.place = place
        for name, features in OUTPUTS.items():
            self.add_module(name, ColumnParallelLinear(12, features, place=place, bias=bias))

    def forward(self, x: Tensor) -> Tensor:
        entered = enter_model_parallel(x, self.place)
        return torch.cat(project_all(self, OUTPUTS, entered), dim=-1)


class Together(nn.Module):
    """The same from one fused layer."""

    def __init__(self, place: Place, *, bias: bool) -> None:
        super().__init__()
        self.place = place
        self.fused = ColumnParallelLinear(12, OUTPUTS, place=place, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(project_all(self, ["fused"], enter_model_parallel(x, self.place)), dim=-1)


def fuse_layers(rank: int, world_size: int) -> None:
    with connected(model=world_size) as topology:
        for bias, sequence_parallel in product((True, False), repeat=2):
            place = Place(topology, DOUBLE, sequence_parallel)
            what = f"bias {bias}, sequence-parallel {sequence_parallel}:"

            def cut(weights: Weights, x: Tensor) -> Tensor:
                # The whole outputs, in the order in which the ranks' slices of them stand behind one another.
                parts = [dense.affine(weights, name, x).chunk(world_size, -1) for name in OUTPUTS]
                return torch.cat([part[rank] for rank in range(world_size) for part in parts], dim=-1)

            for layer in (Apart(place, bias=bias), Together(place, bias=bias)):
                x, cut_input = random(2, 4, 12, seed=1), 1 if sequence_parallel else None
                name = type(layer).__name__
                compare_layer(layer, cut, x, topology, cut_input=cut_input, cut_output=-1, what=f"{name}, {what}")
            fill_alike(place, bias=bias)


def fill_alike(place: Place, *, bias: bool) -> None:
    """Assert that fused and separate layers get the same initial values and checkpoint names."""
    apart, together = Apart(place, bias=bias), Together(place, bias=bias)
    for layer in (apart, together):
        fill(layer, seed=4)
    kinds = ["weight", "bias"] if bias else ["weight"]
    assert [name for name, _ in together.named_parameters()] == [f"fused.{kind}" for kind in kinds]
    weights = [whole_weights(layer, place.topology) for layer in (apart, together)]
    assert set(weights[0]) == set(weights[1]) == {f"{name}.{kind}" for name in OUTPUTS for kind in kinds}
    for name, weight in weights[0].items():
        assert torch.equal(weight, weights[1][name]), name
        assert weight.any() == name.endswith("weight")
    parts = [apart.get_parameter(f"{name}.weight").detach() for name in OUTPUTS]
    assert torch.equal(together.fused.weight, torch.cat(parts))


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_a_fused_layer_is_its_layers_in_one_product(world_size: int) -> None:
    if world_size == 1:
        fuse_layers(0, 1)
    else:
        run_distributed(fuse_layers, world_size)


@pytest.mark.parametrize("rank", range(4))
def test_a_fused_layer_says_of_each_output_which_rows_it_has(rank: int) -> None:
    layer = ColumnParallelLinear(12, OUTPUTS, place=Place(view_of(rank, model=4)))
    assert layer.output_sizes == [2, 3, 4]
    assert layer.weight.shape == (9, 12)
    pieces = meta(layer.weight).named("block.fused.weight").pieces
    assert [piece.key for piece in pieces] == ["block.a.weight", "block.b.weight", "block.c.weight"]
    assert [piece.shape for piece in pieces] == [(8, 12), (12, 12), (16, 12)]
    assert [piece.box.offset for piece in pieces] == [(2 * rank, 0), (3 * rank, 0), (4 * rank, 0)]
    assert [piece.box.shape for piece in pieces] == [(2, 12), (3, 12), (4, 12)]
    assert [piece.place for piece in pieces] == [(0, 0), (2, 0), (5, 0)]
    assert [piece.initializer for piece in pieces] == [xavier_normal(12, size) for size in (8, 12, 16)]
    assert layer.bias is not None
    assert [piece.key for piece in meta(layer.bias).named("fused.bias").pieces] == ["a.bias", "b.bias", "c.bias"]
    for parameter in layer.parameters():
        assert meta(parameter).placements == USUAL.having(Axis.MODEL, CUT)


@pytest.mark.parametrize("kind", [ColumnParallelLinear, RowParallelLinear])
@pytest.mark.parametrize("given", [None, Normal(0.5)])
def test_a_weight_is_drawn_for_the_whole_matrix_unless_said_otherwise(
    kind: Callable[..., nn.Module], given: Normal | None
) -> None:
    layer: Any = kind(12, 8, place=Place(view_of(1, model=4)), initializer=given)
    [piece] = meta(layer.weight).named("weight").pieces
    assert piece.initializer == (given or xavier_normal(12, 8))


@pytest.mark.parametrize(
    ("outputs", "parts"), [({"a": Heads(8, 3), "b": Heads(2, 3)}, 4), ({"a": 8, "b": Heads(1, 3)}, 2)]
)
def test_layers_of_which_ranks_share_some_are_not_fused(outputs: Mapping[str, int | Heads], parts: int) -> None:
    with pytest.raises(LayoutError, match="a, b cannot be fused: some of them are shared by neighbouring ranks"):
        ColumnParallelLinear(12, outputs, place=Place(view_of(1, model=parts)))


def test_layers_that_ranks_share_alike_may_be_fused() -> None:
    layers = [
        ColumnParallelLinear(12, {"a": Heads(2, 3), "b": Heads(2, 5)}, place=Place(view_of(rank, model=4)))
        for rank in range(4)
    ]
    for rank, layer in enumerate(layers):
        fill(layer)
        assert torch.equal(layer.weight, layers[rank // 2 * 2].weight)
        for parameter in layer.parameters():
            assert meta(parameter).placements.on(Axis.MODEL) == Placement(copies=2, gradient_in_parts=True)
    assert not torch.equal(layers[0].weight, layers[2].weight)
