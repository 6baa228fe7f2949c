"""Edits of a linear layer, and other arithmetic for its product: toys, each against its dense formula."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scaling.core.nn.init import Normal, fill
from scaling.core.nn.linear import ColumnParallelLinear, LinearEdit, RowParallelLinear, linear
from scaling.core.nn.mlp import ParallelSwiGLUMLP
from scaling.core.nn.parameter import Piece, meta, new_parameter
from scaling.core.nn.place import Place, enter_model_parallel
from scaling.core.nn.shard import Shard
from tests.distributed import run_distributed
from tests.reference.compare import close
from tests.reference.sharding import GATHER, SCATTER, SUM, Weights, compare_layer, whole_weights
from tests.reference.worlds import connected, random, view_of

DOUBLE = torch.float64
IN, OUT, RANK = 12, 8, 3

Linear = ColumnParallelLinear | RowParallelLinear


def cut_of(layer: Linear) -> tuple[Piece, Shard]:
    """Return the layer's piece, and how its outputs (column) or inputs (row) are cut."""
    (piece,) = meta(layer.weight).pieces
    dim = 0 if isinstance(layer, ColumnParallelLinear) else 1
    offset, length = piece.box.offset[dim], piece.box.shape[dim]
    return piece, Shard(dim=dim, offset=offset, length=length, local_length=length)


class LowRank(LinearEdit):
    """x A^T B^T (LoRA, arXiv:2106.09685): the factor on the side where the layer is cut is cut as the layer is.

    Each model rank sees a part of the gradient of the other factor.
    """

    def __init__(self, layer: Linear) -> None:
        super().__init__()
        (piece, shard), dtype = cut_of(layer), layer.place.dtype
        (rows, columns), cut_rows = piece.shape, shard.dim == 0
        down, up = (None, shard) if cut_rows else (shard, None)
        self.down = new_parameter((RANK, columns), Normal(1.0), shard=down, dtype=dtype, gradient_in_parts=cut_rows)
        self.up = new_parameter((rows, RANK), Normal(1.0), shard=up, dtype=dtype, gradient_in_parts=not cut_rows)

    def within(self, y: Tensor, x: Tensor) -> Tensor:
        return y + linear(linear(x, self.down), self.up)


class SecondBias(LinearEdit):
    """A bias to be trained alone (BitFit, arXiv:2106.10199); beside a row-parallel layer each rank adds its share."""

    def __init__(self, layer: Linear) -> None:
        super().__init__()
        piece, shard = cut_of(layer)
        shared = shard.dim == 1
        self.share = layer.place.parts if shared else 1
        self.bias = new_parameter(
            piece.shape[:1],
            Normal(1.0),
            shard=None if shared else shard,
            dtype=layer.place.dtype,
            gradient_in_parts=shared,
        )

    def within(self, y: Tensor, x: Tensor) -> Tensor:
        return y + self.bias / self.share


class Squeeze(LinearEdit):
    """Inputs doubled, outputs halved, the bias with them: what stands before and behind the product."""

    def before(self, x: Tensor) -> Tensor:
        return 2.0 * x

    def after(self, y: Tensor) -> Tensor:
        return 0.5 * y


@dataclass
class Rounded:
    """A product of operands of eight bits, as if its gradients were those of the operands themselves."""

    shapes: list[tuple[int, ...]] = field(default_factory=list)

    @staticmethod
    def rounded(tensor: Tensor) -> Tensor:
        """Return the nearest numbers of eight bits; they do not depend on the cut."""
        return tensor + (tensor.to(torch.float8_e4m3fn).to(tensor.dtype) - tensor).detach()

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        self.shapes.append(tuple(weight.shape))
        return linear(self.rounded(x), self.rounded(weight), bias)


class Entered(nn.Module):
    """A layer behind a way in of its own, as a block has it: what the layer is called on is whole."""

    def __init__(self, layer: ColumnParallelLinear, place: Place) -> None:
        super().__init__()
        self.layer = layer
        self.place = place

    def forward(self, x: Tensor) -> Tensor:
        projected: Tensor = self.layer(enter_model_parallel(x, self.place), entered=True)
        return projected


def low_rank(weights: Weights, x: Tensor) -> Tensor:
    return usual(weights, x) + x @ weights["lora.down"].t() @ weights["lora.up"].t()


def usual(weights: Weights, x: Tensor) -> Tensor:
    y = x @ weights["weight"].t()
    return y + weights["bias"] if "bias" in weights else y


def second_bias(weights: Weights, x: Tensor) -> Tensor:
    return usual(weights, x) + weights["second.bias"]


def rounded_product(weights: Weights, x: Tensor) -> Tensor:
    return usual({**weights, "weight": Rounded.rounded(weights["weight"])}, Rounded.rounded(x))


def all_at_once(weights: Weights, x: Tensor) -> Tensor:
    """Only the layer's own product is rounded."""
    own = rounded_product(weights, x)
    return own + low_rank(weights, x) - usual(weights, x) + weights["second.bias"]


def put_low_rank(layer: Linear) -> None:
    layer.edit("lora", LowRank(layer))


def put_second_bias(layer: Linear) -> None:
    layer.edit("second", SecondBias(layer))


def put_rounded(layer: Linear) -> None:
    layer.product = Rounded()


def put_squeeze(layer: Linear) -> None:
    layer.edit("squeeze", Squeeze())


def put_passive(layer: Linear) -> None:
    put_squeeze(layer)
    put_low_rank(layer)
    for edit in layer.children():
        assert isinstance(edit, LinearEdit)
        edit.active = False


def squeezed(weights: Weights, x: Tensor) -> Tensor:
    return 0.5 * usual(weights, 2.0 * x)


def put_all(layer: Linear) -> None:
    for put in (put_second_bias, put_rounded, put_low_rank):
        put(layer)


@dataclass(frozen=True)
class Toy:
    """What is put into a layer, and what the layer then computes."""

    put: Callable[[Linear], None]
    formula: Callable[[Weights, Tensor], Tensor]
    names: tuple[str, ...] = ()


TOYS = {
    "nothing": Toy(lambda layer: None, usual),
    "LoRA": Toy(put_low_rank, low_rank, ("lora.down", "lora.up")),
    "BitFit": Toy(put_second_bias, second_bias, ("second.bias",)),
    "squeezed": Toy(put_squeeze, squeezed),
    "rounded": Toy(put_rounded, rounded_product),
    "all": Toy(put_all, all_at_once, ("second.bias", "lora.down", "lora.up")),
}


def compare_toys(rank: int, world_size: int) -> None:
    with connected(model=world_size) as topology:
        x = random(2, 4, IN, seed=1)
        for (name, toy), bias, sequence_parallel in product(TOYS.items(), (True, False), (False, True)):
            place = Place(topology, DOUBLE, sequence_parallel)
            own = ["weight", "bias"] if bias else ["weight"]
            what = f"{name}, bias {bias}, sequence-parallel {sequence_parallel}:"

            row = RowParallelLinear(IN, OUT, place=place, bias=bias)
            toy.put(row)
            assert [n for n, _ in row.named_parameters()] == [*own, *toy.names]
            cut = 1 if sequence_parallel else None
            messages = compare_layer(row, toy.formula, x, topology, cut_input=-1, cut_output=cut, what=f"row {what}")
            once = [SCATTER, GATHER] if sequence_parallel else [SUM]
            assert messages == (once if world_size > 1 else []), what

            column = ColumnParallelLinear(IN, OUT, place=place, bias=bias)
            toy.put(column)
            assert [n for n, _ in column.named_parameters()] == [*own, *toy.names]
            entered = Entered(column, place)
            messages = compare_layer(
                entered, within("layer", toy.formula), x, topology, cut_input=cut, cut_output=-1, what=f"column {what}"
            )
            once = [GATHER, SCATTER] if sequence_parallel else [SUM]
            assert messages == (once if world_size > 1 else []), what
            if not sequence_parallel:  # alone, the layer is its own way in
                column = ColumnParallelLinear(IN, OUT, place=place, bias=bias)
                toy.put(column)
                messages = compare_layer(column, toy.formula, x, topology, cut_output=-1, what=f"column alone {what}")
                assert messages == (once if world_size > 1 else []), what


def within(prefix: str, formula: Callable[[Weights, Tensor], Tensor]) -> Callable[[Weights, Tensor], Tensor]:
    """Return the formula of a layer that is the child `prefix` of the module compared."""
    return lambda weights, x: formula({name.removeprefix(f"{prefix}."): w for name, w in weights.items()}, x)


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_an_edit_of_a_layer_takes_part_in_its_sum_without_a_message_of_its_own(world_size: int) -> None:
    if world_size == 1:
        compare_toys(0, 1)
    else:
        run_distributed(compare_toys, world_size)


@pytest.mark.parametrize("kind", [ColumnParallelLinear, RowParallelLinear])
@pytest.mark.parametrize("name", [name for name in TOYS if name != "nothing"])
def test_the_parameters_of_the_layer_keep_names_and_initial_values(kind: type[Linear], name: str) -> None:
    alone = [kind(IN, OUT) for _ in range(2)]
    TOYS[name].put(alone[1])
    for layer in alone:
        fill(layer, seed=3)
    weights = [whole_weights(layer, layer.place.topology) for layer in alone]
    assert set(weights[1]) == {*weights[0], *TOYS[name].names}
    assert all(torch.equal(weight, weights[1][key]) for key, weight in weights[0].items())


def test_the_product_of_a_layer_is_asked_for_its_own_weight_alone() -> None:
    layer = RowParallelLinear(IN, OUT)
    put_all(layer)
    fill(layer)
    layer(random(2, IN, seed=1, dtype=torch.float32))
    assert isinstance(layer.product, Rounded)
    assert layer.product.shapes == [(OUT, IN)]


def test_edits_that_are_not_active_are_passed_over() -> None:
    layer, alone = RowParallelLinear(IN, OUT), RowParallelLinear(IN, OUT)
    put_passive(layer)
    for each in (layer, alone):
        fill(each, seed=3)
    x = random(2, IN, seed=1, dtype=torch.float32)
    assert torch.equal(layer(x), alone(x))
    for edit in layer.children():
        assert isinstance(edit, LinearEdit)
        edit.active = True
    assert not torch.equal(layer(x), alone(x))


def test_the_parameters_of_an_edit_may_go_by_the_name_of_another_module() -> None:
    layer, owner = ColumnParallelLinear(IN, OUT), nn.Module()
    layer.edit("lora", LowRank(layer), owner=owner)
    assert [name for name, _ in layer.named_parameters()] == ["weight", "bias"]
    assert [name for name, _ in owner.named_parameters()] == ["lora.down", "lora.up"]
    both = nn.ModuleList([layer, owner])
    fill(both)
    x = random(2, IN, seed=1, dtype=torch.float32)
    weights: dict[str, Tensor] = {**dict(layer.named_parameters()), **dict(owner.named_parameters())}
    close(layer(x), low_rank(weights, x), tolerance=1e-6)


def test_layers_do_not_share_the_edits_of_one_of_them() -> None:
    one, other = ColumnParallelLinear(IN, OUT), ColumnParallelLinear(IN, OUT)
    put_all(one)
    assert other.product is linear
    assert [name for name, _ in other.named_parameters()] == ["weight", "bias"]


def test_what_is_frozen_and_what_is_trained_is_chosen_by_name() -> None:
    """The use of it all: the layer's own parameters stay, those of the edit learn."""
    layer = ColumnParallelLinear(IN, OUT)
    fill(layer)
    put_low_rank(layer)
    for name, parameter in layer.named_parameters():
        parameter.requires_grad_(name.startswith("lora."))
    fill(layer)  # what is new
    layer(random(2, IN, seed=1, dtype=torch.float32)).sum().backward()
    assert {name for name, p in layer.named_parameters() if p.grad is not None} == {"lora.down", "lora.up"}


def adapted_block(place: Place, *, fused: bool) -> ParallelSwiGLUMLP:
    names = ("dense_in", "siglu_weight")
    if fused:
        ways_in = {"both": ColumnParallelLinear(IN, dict.fromkeys(names, 2 * OUT), place=place)}
    else:
        ways_in = {name: ColumnParallelLinear(IN, 2 * OUT, place=place) for name in names}
        for way_in in ways_in.values():
            put_low_rank(way_in)
    block = ParallelSwiGLUMLP(ways_in, RowParallelLinear(2 * OUT, IN, place=place))
    put_low_rank(block.dense_out)
    layers: list[Linear] = [*ways_in.values(), block.dense_out]
    for layer in layers:
        put_rounded(layer)
    return block


def adapted_formula(weights: Weights, x: Tensor) -> Tensor:
    def way(name: str, x: Tensor) -> Tensor:
        own = {n.removeprefix(f"{name}."): w for n, w in weights.items() if n.startswith(f"{name}.")}
        y = rounded_product(own, x)
        return y + x @ own["lora.down"].t() @ own["lora.up"].t() if "lora.down" in own else y

    gate = way("dense_in", x)
    return way("dense_out", gate / (1 + (-gate).exp()) * way("siglu_weight", x))


def compare_adapted_blocks(rank: int, world_size: int) -> None:
    with connected(model=world_size) as topology:
        x = random(2, 4, IN, seed=1)
        for sequence_parallel, fused in product((False, True), repeat=2):
            place, cut = Place(topology, DOUBLE, sequence_parallel), 1 if sequence_parallel else None
            block = adapted_block(place, fused=fused)
            options: dict[str, Any] = {"cut_input": cut, "cut_output": cut, "what": f"{fused} {sequence_parallel}:"}
            messages = compare_layer(block, adapted_formula, x, topology, **options)
            assert messages == ([GATHER, SCATTER, GATHER, SCATTER] if sequence_parallel else [SUM, SUM])


def test_a_block_of_adapted_layers_has_still_one_sum_in_each_direction() -> None:
    run_distributed(compare_adapted_blocks, 2)


@pytest.mark.parametrize("rank", range(2))
def test_an_edit_is_cut_as_the_layer_is(rank: int) -> None:
    place = Place(view_of(rank, model=2))
    column, row = ColumnParallelLinear(IN, OUT, place=place), RowParallelLinear(IN, OUT, place=place)
    alone: list[Linear] = [ColumnParallelLinear(IN, OUT), RowParallelLinear(IN, OUT)]
    every: list[Linear] = [column, row, *alone]
    for layer in every:
        put_low_rank(layer)
        fill(layer)
    for cut, whole, dims in ((column, alone[0], (None, 0)), (row, alone[1], (1, None))):
        for name, dim in zip(("lora.down", "lora.up"), dims, strict=True):
            expected = whole.get_parameter(name).detach()
            close(cut.get_parameter(name), expected if dim is None else expected.chunk(2, dim)[rank], tolerance=0.0)
