"""Axes that split the batch count as one: gradients are summed, and the state is cut, over all of them together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from math import prod
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scaling.core.boxes import Box, GlobalTensor
from scaling.core.data.types import MicroBatch
from scaling.core.nn.init import Normal
from scaling.core.nn.parameter import DescribedParameter, ParameterMeta, Piece, annotate
from scaling.core.optimizer.config import OptimizerConfig
from scaling.core.optimizer.optimizer import Optimizer
from scaling.core.pipeline.layer_spec import LayerSpec
from scaling.core.pipeline.loss import LossOutput
from scaling.core.pipeline.module import ParallelModule
from scaling.core.topology.config import TopologyConfig
from scaling.core.topology.layout import Axis, Layout
from scaling.core.topology.placement import CUT, USUAL
from scaling.core.topology.topology import Topology
from tests.distributed import run_distributed
from tests.reference.assembly import everything, module_and_optimizer
from tests.reference.compare import backward, close, gradient_of
from tests.reference.training import Part, join, parts_of
from tests.reference.worlds import random, topology_config

WIDTH, SAMPLES, TOKENS, SLICES = 8, 4, 6, 2
STEPS, RATE, CLIP = 2, 1e-2, 0.1


@contextmanager
def connected_as(layout: Layout) -> Iterator[Topology]:
    """Join a world of any layout: the configuration has no number for the context axis."""
    config = topology_config(pipe=layout.pipe, data=layout.data * layout.context, model=layout.model)
    with mock.patch.object(TopologyConfig, "layout", layout), Topology.connect(config) as topology:
        yield topology


class Slices(nn.Module):
    """Adds a vector of its own to each slice of the sequence: of the whole parameter, context ranks hold theirs."""

    def __init__(self, topology: Topology) -> None:
        super().__init__()
        rows = SLICES // topology.size(Axis.CONTEXT)
        box = Box((rows * topology.index(Axis.CONTEXT), 0), (rows, WIDTH))
        piece = Piece(shape=(SLICES, WIDTH), box=box, place=(0, 0), initializer=Normal(1.0))
        own = DescribedParameter(torch.empty(box.shape, dtype=torch.float64, device="meta"))
        self.offset = annotate(own, ParameterMeta(pieces=(piece,), placements=USUAL.having(Axis.CONTEXT, CUT)))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x.unflatten(1, (len(self.offset), -1)) + self.offset.unsqueeze(1)
        return y.flatten(1, 2)


def batch(step: int) -> Tensor:
    return random(SAMPLES, TOKENS, WIDTH, seed=step)


def micro_batches(step: int, topology: Topology) -> Iterator[MicroBatch]:
    """Yield this rank's tokens of its samples."""
    data, context = topology.size(Axis.DATA), topology.size(Axis.CONTEXT)
    for sample in batch(step)[topology.index(Axis.DATA) :: data].split(1):
        yield MicroBatch(sample.chunk(context, dim=1)[topology.index(Axis.CONTEXT)], torch.zeros(1))


def square(output: Tensor, targets: Tensor) -> LossOutput:
    return LossOutput(output.tanh().square().sum(), output.shape[1])


@dataclass(frozen=True)
class Seen:
    """What one rank saw of a training."""

    initial: list[Part]
    gradients: list[list[Part]]
    """Of the mean loss, by step."""
    norms: list[float]
    final: list[Part]
    state: list[tuple[tuple[Axis, ...], int, int]]
    """Of each buffer the axes over which it is summed jointly, and how many of how many elements this rank updates."""


def build(topology: Topology, *, zero: bool) -> tuple[ParallelModule, Optimizer]:
    config = topology_config(data=topology.size(Axis.DATA), global_batch_size=SAMPLES, micro_batch_size=1)
    linear = LayerSpec(nn.Linear, WIDTH, WIDTH, dtype=torch.float64)
    options = {"zero": zero, "allreduce_bucket_size": 50, "gradient_clipping": CLIP}
    return module_and_optimizer(
        [linear, LayerSpec(Slices, topology), linear],
        topology,
        config,
        OptimizerConfig.from_dict(options),
        groups=everything(RATE, weight_decay=0.1),
        usual_weight=SAMPLES * TOKENS,
    )


def train(rank: int, world_size: int, layout: Layout, zero: bool) -> Seen:
    with connected_as(layout) as topology:
        module, optimizer = build(topology, zero=zero)
        initial, gradients, norms = parts_of(module.global_tensors()), [], []

        def observe(tensors: Iterator[GlobalTensor], unscale: Tensor) -> None:
            factor = float(unscale)
            gradients.append([replace(part, values=part.values * factor) for part in parts_of(tensors)])

        optimizer.observer = observe
        for step in range(1, STEPS + 1):
            loss = module.train_step(micro_batches(step, topology), square, gradient_scale=optimizer.gradient_scale)
            norms.append(float(optimizer.step(step, weight=loss.weight).global_grad_norm))
        state = [
            (
                buffer.kind.placements.batch_axes(layout),
                sum(shard.master.numel() for shard in optimizer._shards if shard.buffer is buffer),
                len(buffer.weights),
            )
            for buffer in optimizer._buffers
        ]
        return Seen(initial, gradients, norms, parts_of((*module.global_tensors(), *optimizer.global_tensors())), state)


@cache
def densely() -> tuple[dict[str, Tensor], list[dict[str, Tensor]], list[float], dict[str, Tensor]]:
    """Return initial weights, gradients and norms by step, and final weights of a training of whole tensors."""
    module, _ = build(Topology.single(), zero=False)
    initial = join([parts_of(module.global_tensors())])
    weights = {key: value.clone().requires_grad_() for key, value in initial.items()}
    adamw = torch.optim.AdamW(weights.values(), lr=RATE, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    gradients, norms = [], []
    for step in range(1, STEPS + 1):
        x = F.linear(batch(step), weights["layers.0.weight"], weights["layers.0.bias"])
        x = x + weights["layers.1.offset"].repeat_interleave(TOKENS // SLICES, dim=0)
        x = F.linear(x, weights["layers.2.weight"], weights["layers.2.bias"])
        adamw.zero_grad()
        backward(x.tanh().square().sum() / (SAMPLES * TOKENS))
        gradients.append({key: gradient_of(value).clone() for key, value in weights.items()})
        norms.append(float(torch.nn.utils.get_total_norm(gradients[-1].values())))
        for value in weights.values():
            gradient_of(value).mul_(CLIP / norms[-1])
        adamw.step()
    return initial, gradients, norms, {key: value.detach() for key, value in weights.items()}


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize(
    "layout",
    [Layout(), Layout(context=2), Layout(data=2, context=2), Layout(pipe=2, context=2), Layout(data=4)],
    ids=str,
)
def test_gradients_are_those_of_the_whole_batch_however_it_is_split(layout: Layout, zero: bool) -> None:
    """Also of parameters of which each context rank has its own: those are summed over the data axis alone."""
    if layout.world_size == 1:
        ranks = [train(0, 1, layout, zero)]
    else:
        ranks = run_distributed(train, layout.world_size, layout, zero)
    initial, gradients, norms, final = densely()
    for key, value in join([rank.initial for rank in ranks]).items():
        assert torch.equal(value, initial[key]), f"{key} starts with other bits"
    for rank in ranks:
        assert rank.norms == pytest.approx(norms, rel=1e-12)
        assert min(rank.norms) > CLIP
    for step, expected in enumerate(gradients):
        found = join([rank.gradients[step] for rank in ranks])
        assert set(found) == set(expected)
        for key, value in found.items():
            close(value, expected[key], f"gradient of {key} in step {step + 1}")
    last = join([rank.final for rank in ranks])
    for key, value in final.items():
        close(last[key], value, key)
    batch_axes = tuple(axis for axis in (Axis.DATA, Axis.CONTEXT) if layout.size(axis) > 1)
    own_axes = tuple(axis for axis in batch_axes if axis is Axis.DATA)
    for rank in ranks:
        assert {axes for axes, _, _ in rank.state} <= {batch_axes, own_axes}
        for axes, updated, whole in rank.state:
            assert updated * (prod(map(layout.size, axes)) if zero else 1) == whole
    assert {axes for rank in ranks for axes, _, _ in rank.state} == {batch_axes, own_axes}
