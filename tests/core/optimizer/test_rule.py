"""Update rules: AdamW on flat shards is torch's, and one that needs whole matrices is dense in every layout.

The second, orthogonalised momentum for matrices beside AdamW for vectors, is unknown to every file of the library.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from scaling.core.boxes import GlobalTensor
from scaling.core.checkpoint.checkpointer import Checkpointer
from scaling.core.nn.parameter import meta
from scaling.core.optimizer.flat_buffer import build_buffers
from scaling.core.optimizer.rule import AdamW, Pace
from scaling.core.optimizer.shard import FlatShard, make_shard
from scaling.core.pipeline.loss import LossOutput
from scaling.core.topology.layout import Layout
from scaling.core.topology.placement import USUAL
from scaling.core.topology.topology import Topology
from tests.core.trainer.regression import communicator_of
from tests.distributed import run_distributed
from tests.reference.compare import close
from tests.reference.models import Loss, Model, dense_loss, micro_batches
from tests.reference.training import Part, build, join, parts_of
from tests.reference.worlds import random, topology_config

DECAY, CLIP = 0.1, 0.3
SHARED = Model(vocabulary=5, kv_heads=2, blocks=2)
"""Four ranks share the heads of keys and values, and the last of them has nothing of the vocabulary but padding."""
FUSED = Model(blocks=2)
"""Queries, keys and values are matrices of their own in one parameter."""


def rate(step: int) -> float:
    return 1e-2 * min(1.0, step / 2)


def orthogonalised(matrix: Tensor) -> Tensor:
    """Return a matrix of singular values near its norm, by a few steps of Newton and Schulz."""
    norm: Tensor = torch.linalg.matrix_norm(matrix).clamp_min(1e-30)
    x = matrix / norm
    for _ in range(5):
        x = 1.5 * x - 0.5 * x @ x.mT @ x
    return x * norm


@dataclass(frozen=True)
class Orthogonal:
    """Momentum of whole matrices, orthogonalised: what a matrix cut in two gives is not what its halves give."""

    slots: ClassVar[tuple[str, ...]] = ("momentum",)
    bfloat16_slots: ClassVar[tuple[str, ...]] = ()
    whole_matrices: ClassVar[bool] = True

    beta: float = 0.9

    def update(self, shards: Sequence[FlatShard], pace: Pace) -> None:
        for matrix in (matrix for shard in shards for matrix in shard.matrices):
            momentum = self.beta * matrix.slots["momentum"] + matrix.gradients
            step = matrix.part(orthogonalised(matrix.whole(momentum)))
            master = matrix.master * (1 - pace.rate * pace.decay) - pace.rate * step
            for kept, value in ((matrix.slots["momentum"], momentum), (matrix.master, master)):
                kept.copy_(torch.where(pace.skip > 0, kept, value))


def train_densely(model: Model, steps: int) -> dict[str, Tensor]:
    """Return whole weights and slots after some steps, trained by hand."""
    weights = {key: value.requires_grad_() for key, value in train_in(model, {}, ()).items()}
    vectors = {key: value for key, value in weights.items() if "norm" in key or key.endswith("bias")}
    momenta = {key: torch.zeros_like(value) for key, value in weights.items() if key not in vectors}
    adamw = torch.optim.AdamW(vectors.values(), betas=(0.9, 0.95), weight_decay=0.0)
    for step in range(1, steps + 1):
        adamw.zero_grad()
        gradients = torch.autograd.grad(dense_loss(model, weights, step), list(weights.values()))
        norm = torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt()
        for (key, value), gradient in zip(weights.items(), gradients, strict=True):
            value.grad = gradient * (CLIP / norm).clamp_max(1.0)
            if key in momenta:
                momenta[key] = 0.9 * momenta[key] + value.grad
                with torch.no_grad():
                    value.mul_(1 - rate(step) * DECAY).sub_(rate(step) * orthogonalised(momenta[key]))
        adamw.param_groups[0]["lr"] = rate(step)
        adamw.step()
    state = {key: value.detach() for key, value in weights.items()}
    state |= {f"optimizer.momentum.{key}": value for key, value in momenta.items()}
    for slot in ("exp_avg", "exp_avg_sq"):
        state |= {f"optimizer.{slot}.{key}": adamw.state[value][slot] for key, value in vectors.items()}
    return state


def train(
    rank: int,
    world_size: int,
    model: Model,
    layout: dict[str, Any],
    options: dict[str, Any],
    steps: Sequence[int],
    load: Path | None,
    save: Path | None,
) -> list[Part]:
    """Train as one rank of a world, with a batch before each step whose gradients overflow."""
    config = topology_config(**{"global_batch_size": model.global_batch, "micro_batch_size": 1, **layout})
    with Topology.connect(config) as topology:
        module, optimizer = build(model, config, topology, {"gradient_clipping": CLIP, **options}, Orthogonal())
        loss_function = Loss(model, topology)
        initial = parts_of(module.global_tensors())

        def too_large(output: Tensor, targets: dict[str, Tensor]) -> LossOutput:
            found = loss_function(output, targets)
            return replace(found, loss_sum=found.loss_sum * torch.inf)

        def tensors() -> list[GlobalTensor]:
            return [*module.global_tensors(), *optimizer.global_tensors()]

        checkpointer = Checkpointer(save, communicator=communicator_of(topology))
        if load is not None:
            state: Any = checkpointer.load(load, tensors()).scalars["optimizer"]
            optimizer.restore(state)
        for step in steps:
            for function in (too_large, loss_function):
                batches = micro_batches(model, step, config, topology)
                loss = module.train_step(batches, function, gradient_scale=optimizer.gradient_scale)
                report = optimizer.step(step, weight=loss.weight)
                assert report.overflow.item() == (function is too_large)
        checkpointer.save(len(steps), tensors(), {"optimizer": optimizer.state()})
        optimizer.close()
        return parts_of(tensors()) if steps else initial


def train_in(
    model: Model,
    layout: dict[str, Any],
    steps: Sequence[int],
    *,
    load: Path | None = None,
    save: Path | None = None,
    **options: Any,
) -> dict[str, Tensor]:
    ranks = 1
    for axis in ("pipe", "data", "model"):
        ranks *= layout.get(axis, 1)
    if ranks == 1:
        return join([train(0, 1, model, layout, options, steps, load, save)])
    return join(run_distributed(train, ranks, model, layout, options, steps, load, save))


def agree(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert set(found) == set(expected)
    for key, value in found.items():
        close(value, expected[key], key, tolerance=1e-10)


ZERO: dict[str, Any] = {"zero": True}
CASES: list[tuple[Model, dict[str, Any], dict[str, Any]]] = [
    (SHARED, {}, {}),
    (SHARED, {"data": 2}, {}),
    (SHARED, {"data": 2}, {**ZERO, "allreduce_bucket_size": 500}),
    (SHARED, {"model": 4}, {}),
    (SHARED, {"model": 2, "sequence_parallel": True, "data": 2}, ZERO),
    (SHARED, {"pipe": 2}, {}),
    (FUSED, {"data": 2}, ZERO),
    (FUSED, {"model": 2}, {}),
]


def named(case: object) -> str:
    return {id(SHARED): "shared", id(FUSED): "fused"}.get(id(case), str(case))


@pytest.mark.parametrize(("model", "layout", "options"), CASES, ids=named)
def test_a_rule_of_whole_matrices_is_dense_in_every_layout(
    model: Model, layout: dict[str, Any], options: dict[str, Any]
) -> None:
    agree(train_in(model, layout, range(1, 4), **options), train_densely(model, 3))


@pytest.mark.parametrize(("before", "after"), [({"model": 2}, {"data": 2}), ({"data": 2}, {})], ids=str)
def test_its_state_goes_on_in_another_layout(before: dict[str, Any], after: dict[str, Any], tmp_path: Path) -> None:
    train_in(FUSED, before, range(1, 3), save=tmp_path, **ZERO)
    agree(train_in(FUSED, after, range(3, 5), load=tmp_path, **ZERO), train_densely(FUSED, 4))


def flat(shapes: Sequence[tuple[int, ...]], rule: AdamW) -> FlatShard:
    """Return a shard that is all of a buffer, with random gradients."""
    parameters = [nn.Parameter(random(*shape, seed=number).float()) for number, shape in enumerate(shapes)]
    described = [(parameter, meta(parameter)) for parameter in parameters]
    (buffer,) = build_buffers([described], Layout(), bucket_size=1000)
    return make_shard(buffer, slice(0, len(buffer.weights)), rule, USUAL, Topology.single())


def test_adamw_has_the_bits_of_torchs_and_skips_without_a_trace() -> None:
    rule = AdamW(beta1=0.8, beta2=0.9, eps=1e-6)
    shards = [flat([(3, 5), (7,)], rule), flat([(64,)], rule)]
    plain = [shard.master.clone().requires_grad_() for shard in shards]
    adamw = torch.optim.AdamW(plain, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.1, fused=True)
    updates = torch.zeros(())
    for step in range(1, 6):
        skip = float(step in (1, 4))
        for number, (shard, parameter) in enumerate(zip(shards, plain, strict=True)):
            shard.gradients.copy_(random(len(shard.master), seed=10 * step + number))
            if skip:
                shard.gradients[3] = torch.nan
            parameter.grad = shard.gradients.clone()
        rule.update(shards, Pace(0.01 * step, 0.1, updates + 1, torch.tensor(skip)))
        if not skip:
            updates += 1
            adamw.param_groups[0]["lr"] = 0.01 * step
            adamw.step()
        for shard, parameter in zip(shards, plain, strict=True):
            assert torch.equal(shard.master, parameter)
            for slot in rule.slots if updates else ():
                assert torch.equal(shard.slots[slot], adamw.state[parameter][slot])
