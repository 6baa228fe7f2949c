"""The weighted sum of cross entropies, with gradients made in the forward pass, against whole logits."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from scaling.core.nn.embedding import VocabParallelEmbedding
from scaling.core.nn.init import Constant
from scaling.core.nn.linear import linear
from scaling.core.nn.loss import LogitTerm
from scaling.core.nn.loss_sum import linear_cross_entropy_sum, tokens_per_chunk
from scaling.core.nn.parameter import new_parameter
from scaling.core.nn.place import Place, enter_model_parallel
from tests.core.nn.test_loss import EVERYTHING, HIDDEN, PLAIN, RANK, TARGETS, Products, dense_losses
from tests.distributed import run_distributed
from tests.reference import dense
from tests.reference.compare import backward, close, gradient_of
from tests.reference.sharding import GATHER, SUM, compare_layer
from tests.reference.worlds import connected, model_group, random

WEIGHTS = random(*TARGETS.shape, seed=7).abs()
Z_LOSS = 0.3


class Head(nn.Module):
    """A matrix, perhaps a bias and low-rank terms, and the weighted sum of losses and of squares of log Z."""

    def __init__(self, vocabulary: int, place: Place, *, bias: bool, terms: int, **options: Any) -> None:
        super().__init__()
        self.table = VocabParallelEmbedding(vocabulary, HIDDEN, place=place)
        zeros, shard = Constant(0.0), self.table.shard
        self.bias = new_parameter((vocabulary,), zeros, shard=shard, dtype=place.dtype) if bias else None
        self.a = nn.ParameterList(
            new_parameter((RANK, HIDDEN), zeros, dtype=place.dtype, gradient_in_parts=place.parts > 1)
            for _ in range(terms)
        )
        self.b = nn.ParameterList(
            new_parameter((vocabulary, RANK), zeros, shard=shard, dtype=place.dtype) for _ in range(terms)
        )
        self.options = options

    def forward(self, x: Tensor, targets: Tensor) -> Tensor:
        place, shard = self.table.place, self.table.shard
        entered = enter_model_parallel(x, place)
        return linear_cross_entropy_sum(
            entered,
            self.table.weight[: shard.length],
            targets,
            WEIGHTS,
            z_loss=Z_LOSS,
            bias=None if self.bias is None else self.bias[: shard.length],
            terms=[LogitTerm(linear(entered, a), b[: shard.length]) for a, b in zip(self.a, self.b, strict=True)],
            group=place.group,
            offset=shard.offset,
            **self.options,
        ).loss.unsqueeze(0)


def dense_sum(weights: dense.Weights, x: Tensor, targets: Tensor, scale: float, cap: float | None) -> Tensor:
    losses, log_z = dense_losses(weights, x, targets, scale, cap)
    total: Tensor = ((losses + Z_LOSS * log_z.square()) * WEIGHTS).sum()
    return total.unsqueeze(0)


def compare_heads(rank: int, world_size: int) -> None:
    with connected(model=world_size) as topology:
        place = Place(topology, torch.float64)
        x = random(2, TARGETS.shape[1], HIDDEN, seed=1)
        for vocabulary, options, chunk_size in product((2, 5, 23), (PLAIN, EVERYTHING), (1, 4, 100)):
            own = torch.where(TARGETS >= 0, TARGETS % vocabulary, TARGETS)
            scale, cap = options["scale"], options["cap"]
            messages = compare_layer(
                Head(vocabulary, place, chunk_size=chunk_size, **options),
                lambda weights, x: dense_sum(weights, x, own, scale, cap),  # noqa: B023  # called at once
                x,
                topology,
                own,
                what=f"vocabulary {vocabulary}, {options}, chunks of {chunk_size}:",
            )
            chunks = -(-TARGETS.numel() // chunk_size)
            assert messages == ([GATHER] * chunks + [SUM] if world_size > 1 else [])


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_sum_and_gradients_are_those_of_whole_logits(world_size: int) -> None:
    """Also where a rank's part of the vocabulary is all padding; each chunk is one message."""
    if world_size == 1:
        compare_heads(0, 1)
    else:
        run_distributed(compare_heads, world_size)


def operands(dtype: torch.dtype, positions: int = 300) -> list[Tensor]:
    shapes = ((positions, 32), (500, 32), (500,))
    return [random(*shape, seed=seed).to(dtype).requires_grad_() for seed, shape in enumerate(shapes)]


def summed(leaves: list[Tensor], *, chunk_size: int = 77) -> Tensor:
    hidden, weight, bias = leaves
    n = hidden.shape[0]
    weights = torch.arange(n) % 3 / 2
    return linear_cross_entropy_sum(
        hidden, weight, torch.arange(n) * 7 % 500, weights, bias=bias, z_loss=0.01, scale=0.5, chunk_size=chunk_size
    ).loss


def whole(leaves: list[Tensor]) -> Tensor:
    hidden, weight, bias = leaves
    n = hidden.shape[0]
    logits = 0.5 * F.linear(hidden, weight, bias)
    losses = F.cross_entropy(logits, torch.arange(n) * 7 % 500, reduction="none")
    return ((losses + 0.01 * logits.logsumexp(-1).square()) * (torch.arange(n) % 3 / 2)).sum()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-10)])
def test_no_number_is_further_from_whole_logits_than_rounding(dtype: torch.dtype, tolerance: float) -> None:
    found, expected = operands(dtype), operands(torch.float64)
    for leaves in (found, expected):
        if leaves is found:
            with torch.no_grad():
                for leaf, rounded in zip(expected, found, strict=True):
                    leaf.copy_(rounded)
    loss, reference = summed(found), whole(expected)
    assert abs(loss.item() / reference.item() - 1) <= tolerance
    backward(loss)
    backward(reference)
    for leaf, other in zip(found, expected, strict=True):
        assert gradient_of(leaf).dtype == dtype
        apart = (gradient_of(leaf) - gradient_of(other)).norm() / gradient_of(other).norm()
        assert apart <= tolerance


@pytest.mark.parametrize("factor", [0.0, -3.5, 65536.0])
def test_gradients_are_right_for_any_incoming_gradient(factor: float) -> None:
    found, expected = operands(torch.float64), operands(torch.float64)
    summed(found).backward(torch.tensor(factor, dtype=torch.float64))
    whole(expected).backward(torch.tensor(factor, dtype=torch.float64))
    for leaf, other in zip(found, expected, strict=True):
        close(gradient_of(leaf), gradient_of(other))


def test_a_backward_pass_in_two_halves_gives_the_same_in_both() -> None:
    leaves = operands(torch.float64)
    loss = summed(leaves)
    scale = torch.tensor(3.0, dtype=torch.float64)
    (first,) = torch.autograd.grad(loss, leaves[:1], scale, retain_graph=True)
    kept = first.clone()
    loss.backward(scale)
    assert torch.equal(first, kept)
    assert torch.equal(gradient_of(leaves[0]), kept)


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_loss_that_is_run_again_has_the_same_gradients(reentrant: bool) -> None:
    found, expected = operands(torch.float64), operands(torch.float64)
    again: Any = checkpoint(lambda *leaves: summed([*leaves]), *found, use_reentrant=reentrant)
    backward(again)
    backward(summed(expected))
    for leaf, other in zip(found, expected, strict=True):
        assert torch.equal(gradient_of(leaf), gradient_of(other))


def test_only_wanted_gradients_are_made_and_none_without_gradients() -> None:
    n, v = 77, 500
    for wanted, expected in (
        ((), [(n, v)]),
        ((0,), [(n, v), (n, 32)]),
        ((1,), [(n, v), (v, 32)]),
        ((0, 1), [(n, v), (n, 32), (v, 32)]),
    ):
        leaves = operands(torch.float64, n)
        for place, leaf in enumerate(leaves):
            leaf.requires_grad_(place in wanted)
        with Products() as products:
            loss = summed(leaves)
            if wanted:
                backward(loss)
        assert products.shapes == expected
        assert [leaf.grad is not None for leaf in leaves] == [place in wanted for place in range(3)]
    with torch.no_grad(), Products() as products:
        summed(operands(torch.float64, n))
    assert products.shapes == [(n, v)]


def test_gradients_of_half_precision_are_summed_and_scaled_in_float32() -> None:
    hidden, weight = torch.ones(1000, 1, dtype=torch.bfloat16), torch.zeros(2, 1, dtype=torch.bfloat16)
    weight.requires_grad_()
    targets, weights = torch.zeros(1000, dtype=torch.int64), torch.ones(1000)
    found = linear_cross_entropy_sum(hidden, weight, targets, weights, chunk_size=1)
    assert found.loss.dtype == torch.float32
    backward(found.loss)
    assert gradient_of(weight).flatten().tolist() == [-500.0, 500.0]  # in bfloat16, 128 + 0.5 is 128


def lose_what_other_ranks_have(rank: int, world_size: int) -> None:
    """The logits of the second rank lie 200 below those of the first, and the targets are there."""
    with connected(model=world_size) as topology:
        hidden, weight = random(3, HIDDEN, seed=1), random(2, HIDDEN, seed=2 + rank).requires_grad_()
        targets, weights = torch.tensor([2, 3, 1]), torch.ones(3, dtype=torch.float64)
        bias = torch.full((2,), -200.0 * rank, dtype=torch.float64)
        found = linear_cross_entropy_sum(
            hidden.float(),
            weight.float(),
            targets,
            weights,
            bias=bias.float(),
            group=model_group(topology),
            offset=2 * rank,
            chunk_size=2,
        )
        backward(found.loss)
        both = torch.cat([random(2, HIDDEN, seed=2), random(2, HIDDEN, seed=3)]).requires_grad_()
        logits = hidden @ both.T - torch.tensor([0.0, 0.0, 200.0, 200.0])
        expected = F.cross_entropy(logits, targets, reduction="sum")
        backward(expected)
        close(found.loss, expected, tolerance=1e-6)
        close(gradient_of(weight), gradient_of(both)[2 * rank : 2 * rank + 2], tolerance=1e-6)


def test_a_target_far_below_the_logits_of_another_rank_keeps_its_gradient() -> None:
    run_distributed(lose_what_other_ranks_have, 2)


def test_chunks_are_equal_and_as_large_as_the_device_likes() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert tokens_per_chunk(1024, 8192, cpu) == 512
    assert tokens_per_chunk(1025, 8192, cpu) == 342
    assert tokens_per_chunk(2048, 131072, cpu) == 128
    assert tokens_per_chunk(2048, 131072, gpu) == 1024
    assert tokens_per_chunk(4096, 32768, gpu) == 4096
    assert tokens_per_chunk(0, 0, cpu) == 1
