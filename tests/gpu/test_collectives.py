"""NCCL takes every call the library makes; with one GPU there is one rank, which is enough to see that it does."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist

from scaling.core.collectives import ops
from scaling.core.collectives.autograd import (
    copy_to_model,
    gather_features,
    gather_sequence,
    reduce_from_model,
    scatter_sequence,
    split_features,
)
from scaling.core.nn.loss import linear_cross_entropy, vocab_parallel_cross_entropy
from tests.reference.compare import backward, close, gradient_of
from tests.reference.worlds import random

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

GPU = torch.device("cuda", 0)
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(scope="module")
def group() -> Iterator[dist.ProcessGroup]:
    torch.cuda.set_device(GPU)
    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1, device_id=GPU)
    made = dist.new_group([0], use_local_synchronization=True)
    assert isinstance(made, dist.ProcessGroup)
    yield made
    dist.destroy_process_group()


@pytest.mark.parametrize("dtype", DTYPES)
def test_plain_collectives_run(dtype: torch.dtype, group: dist.ProcessGroup) -> None:
    x = random(4, 6, seed=1).to(GPU, dtype)
    assert torch.equal(ops.all_reduce(x.clone(), group), x)
    assert torch.equal(ops.all_reduce(x.clone(), group, maximum=True), x)
    later = x.clone()
    work = ops.all_reduce_start(later, group)
    assert work is not None
    work.wait()
    assert torch.equal(later, x)
    assert torch.equal(ops.reduce_scatter(torch.empty_like(x), x, group), x)
    assert torch.equal(ops.all_gather(torch.empty_like(x), x, group), x)
    inside = x.clone().view(-1)
    ops.reduce_scatter_start(inside, inside, group).wait()
    ops.all_gather_start(inside, inside, group).wait()
    assert torch.equal(inside, x.view(-1))
    assert torch.equal(ops.broadcast(x.clone(), group, source=0), x)
    for dim in (0, 1):
        assert torch.equal(ops.gather_slices(x.t(), group, dim=dim), x.t())
        assert torch.equal(ops.scatter_sum(x.t(), group, dim=dim), x.t())
    gathered = ops.gather(x.t(), group, to=0)
    assert gathered is not None
    assert torch.equal(gathered, x.t().unsqueeze(0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "collective",
    [copy_to_model, reduce_from_model, gather_sequence, scatter_sequence, gather_features, split_features],
)
def test_differentiable_collectives_run_forward_and_backward(
    collective: object, dtype: torch.dtype, group: dist.ProcessGroup
) -> None:
    assert callable(collective)
    x = random(2, 4, 6, seed=1).to(GPU, dtype).transpose(0, 1).requires_grad_()
    y = collective(x, group)
    assert torch.equal(y, x)
    gradient = random(6, 2, 4, seed=2).to(GPU, dtype).permute(2, 1, 0)
    backward(y, gradient)
    assert torch.equal(gradient_of(x), gradient)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cross_entropy_over_ranks_is_cross_entropy(dtype: torch.dtype, group: dist.ProcessGroup) -> None:
    targets = torch.arange(30, device=GPU).view(5, 6)
    logits = [random(5, 6, 40, seed=1).to(GPU, dtype).requires_grad_() for _ in range(2)]
    losses = [
        vocab_parallel_cross_entropy(one, targets, group=where)
        for one, where in zip(logits, (group, None), strict=True)
    ]
    close(losses[0].cpu(), losses[1].cpu(), tolerance=1e-5)
    for loss in losses:
        backward(loss.sum())
    close(
        gradient_of(logits[0]).cpu(), gradient_of(logits[1]).cpu(), tolerance=1e-2 if dtype == torch.bfloat16 else 1e-5
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cross_entropy_in_chunks_is_that_of_whole_logits(dtype: torch.dtype, group: dist.ProcessGroup) -> None:
    found = []
    for chunk_size, where in ((None, None), (7, None), (7, group)):
        hidden, weight = (random(*shape, seed=1).to(GPU, dtype).requires_grad_() for shape in ((30, 16), (40, 16)))
        losses, _ = linear_cross_entropy(
            hidden, weight, torch.arange(30, device=GPU), cap=3.0, group=where, chunk_size=chunk_size
        )
        backward(losses.sum())
        found.append([losses.cpu(), gradient_of(hidden).cpu(), gradient_of(weight).cpu()])
    for chunked in found[1:]:
        for one, other in zip(chunked, found[0], strict=True):
            close(one, other, tolerance=2e-2 if dtype == torch.bfloat16 else 1e-4)
