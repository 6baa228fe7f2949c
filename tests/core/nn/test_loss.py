"""Cross entropy over a cut vocabulary against cross entropy over whole logits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from scaling.core.nn.loss import vocab_parallel_cross_entropy
from scaling.core.nn.shard import padded_shard
from tests.distributed import run_distributed
from tests.reference import dense
from tests.reference.compare import backward, close, gradient_of
from tests.reference.worlds import connected, model_group, random

SHAPES = ((6,), (2, 3), (2, 3, 2))


def compare_losses(rank: int, world_size: int) -> None:
    with connected(model=world_size) as topology:
        for vocabulary in (1, 2, 5, 8, 101):
            shard = padded_shard(vocabulary, world_size, rank, dim=0)
            for shape in SHAPES:
                # Far from zero, so that a maximum taken of the wrong ranks overflows or vanishes.
                logits = (random(*shape, vocabulary, seed=3) * 50 + 1000).requires_grad_()
                targets = torch.arange(logits[..., 0].numel()).view(shape) * 7 % vocabulary
                expected = dense.cross_entropy(logits, targets)
                weights = random(*shape, seed=4)
                backward(expected, weights)

                local = logits.detach().narrow(-1, shard.offset, shard.length).clone().requires_grad_()
                losses = vocab_parallel_cross_entropy(local, targets, group=model_group(topology), offset=shard.offset)
                what = f"vocabulary {vocabulary}, shape {shape}:"
                close(losses, expected, f"{what} loss")
                backward(losses, weights)
                close(
                    gradient_of(local), gradient_of(logits).narrow(-1, shard.offset, shard.length), f"{what} gradient"
                )


@pytest.mark.parametrize("world_size", [2, 4])
def test_loss_and_gradient_are_those_of_whole_logits(world_size: int) -> None:
    run_distributed(compare_losses, world_size)


def test_one_rank_alone_computes_cross_entropy() -> None:
    logits, targets = random(2, 3, 11, seed=1), torch.tensor([[0, 10, 5], [3, 3, 1]])
    close(vocab_parallel_cross_entropy(logits, targets), dense.cross_entropy(logits, targets))


def lose_in_half_precision(rank: int, world_size: int) -> None:
    with connected(model=world_size) as topology:
        logits = random(64, 96, seed=1, dtype=torch.bfloat16)
        targets = torch.arange(64)
        own = logits.chunk(world_size, dim=-1)[rank].clone().requires_grad_()
        losses = vocab_parallel_cross_entropy(own, targets, group=model_group(topology), offset=rank * 96 // world_size)
        assert losses.dtype == torch.float32
        close(losses, F.cross_entropy(logits.double(), targets, reduction="none"), tolerance=1e-5)
        backward(losses, torch.ones(64))
        assert gradient_of(own).dtype == torch.bfloat16


def test_half_precision_logits_are_summed_in_float32() -> None:
    run_distributed(lose_in_half_precision, 2)
    whole = random(64, 96, seed=1, dtype=torch.float16)
    losses = vocab_parallel_cross_entropy(whole, torch.arange(64))
    assert losses.dtype == torch.float32
    close(losses, F.cross_entropy(whole.double(), torch.arange(64), reduction="none"), tolerance=1e-5)


def lose_with_an_impossible_token(rank: int, world_size: int) -> list[float]:
    with connected(model=world_size) as topology:
        logits = torch.tensor([[0.0, -torch.inf, 1.0, 2.0]]).expand(2, 4)[:, 2 * rank : 2 * rank + 2]
        losses = vocab_parallel_cross_entropy(
            logits, torch.tensor([0, 1]), group=model_group(topology), offset=2 * rank
        )
        found: list[float] = losses.tolist()
        return found


def test_a_logit_of_minus_infinity_is_probability_zero() -> None:
    expected = torch.tensor([0.0, 1.0, 2.0]).logsumexp(0).item()
    for losses in run_distributed(lose_with_an_impossible_token, 2):
        assert losses == [pytest.approx(expected), torch.inf]


def ignore_positions(rank: int, world_size: int) -> None:
    with connected(model=world_size) as topology:
        whole = random(5, 8, seed=1).requires_grad_()
        local = whole.detach().chunk(world_size, dim=-1)[rank].clone().requires_grad_()
        targets = torch.tensor([3, -100, 7, -100, 0])
        expected = vocab_parallel_cross_entropy(whole, targets)
        losses = vocab_parallel_cross_entropy(
            local, targets, group=model_group(topology), offset=rank * 8 // world_size
        )
        close(losses, expected)
        assert not losses[targets == -100].any()
        for loss in (expected, losses):
            backward(loss.sum())
        close(gradient_of(local), gradient_of(whole).chunk(world_size, dim=-1)[rank])


def test_positions_that_torch_ignores_are_ignored_in_every_layout() -> None:
    run_distributed(ignore_positions, 2)
