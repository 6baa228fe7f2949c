"""Recomputation: the same gradients to the bit, the same draws, and less memory kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scaling.core.errors import ScheduleError
from scaling.core.nn.dropout import Dropout
from scaling.core.nn.place import Place
from scaling.core.nn.recompute import recomputed
from scaling.core.topology.topology import Topology
from tests.reference.compare import backward, gradient_of
from tests.reference.worlds import random


class Noisy(nn.Module):
    """A layer that drops by keys, by this rank's streams and by torch's own generator."""

    def __init__(self, topology: Topology) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8, dtype=torch.float64)
        self.keyed = Dropout(0.3, seed=1, site="keyed")
        self.streams = [
            Dropout(0.3, seed=1, site="s", place=Place(topology, sequence_parallel=flag), stream="per_rank")
            for flag in (False, True)
        ]
        self.runs = 0

    def forward(self, tree: dict[str, Tensor]) -> dict[str, Tensor]:
        self.runs += 1
        x, samples = tree["x"], tree["samples"]
        for dropout in (self.keyed, *self.streams):
            x = dropout(self.linear(x).tanh(), samples)
        return {"x": nn.functional.dropout(x, 0.2), "samples": samples}


def train(recompute: bool) -> dict[str, Any]:
    topology = Topology.single()
    topology.rng.seed(3)
    torch.manual_seed(4)
    layers = nn.ModuleList([Noisy(topology) for _ in range(3)])
    x = random(2, 4, 8, seed=1).requires_grad_()
    tree: Any = {"x": x, "samples": torch.tensor([6, 2])}
    for layer in layers:
        tree = recomputed(layer, tree, topology) if recompute else layer(tree)
    backward(tree["x"].sum())
    after = torch.rand(2)
    with topology.rng.stream("sharded"):
        drawn = torch.rand(2)
    gradients = [gradient_of(parameter) for parameter in layers.parameters()]
    runs = [layer.runs for layer in layers if isinstance(layer, Noisy)]
    return {"tensors": [tree["x"].detach(), gradient_of(x), after, drawn, *gradients], "runs": runs}


def test_recomputation_changes_no_bit_and_no_later_draw() -> None:
    kept, again = train(recompute=False), train(recompute=True)
    assert kept["runs"] == [1, 1, 1]
    assert again["runs"] == [2, 2, 2]
    for one, other in zip(kept["tensors"], again["tensors"], strict=True):
        assert torch.equal(one, other)


def test_segments_are_replayed_with_the_draws_they_had_in_whatever_order_they_come_back() -> None:
    topology = Topology.single()
    layer = Dropout(0.5, seed=1, site="s", place=Place(topology), stream="per_rank")
    inputs = [torch.ones(2, 4, 64, requires_grad=True) for _ in range(3)]
    outputs = [recomputed(lambda x: layer(x * 2, torch.arange(2)).sin(), x, topology) for x in inputs]
    for number in (1, 2, 0):
        backward(outputs[number].sum())
    for x, y in zip(inputs, outputs, strict=True):
        assert torch.equal(gradient_of(x) != 0, y != 0)


class InPlace(nn.Module):
    """A layer that changes a tensor of its input."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, tree: dict[str, Tensor]) -> dict[str, Tensor]:
        tree[self.name].add_(1)
        return {**tree, "x": tree["x"] * self.scale * tree["ids"].sum()}


@pytest.mark.parametrize("name", ["x", "ids"])
def test_a_layer_that_changes_its_input_is_refused_by_name(name: str) -> None:
    x = torch.ones(3, requires_grad=True) * 2
    inputs = {"x": x, "ids": torch.arange(3)}
    with pytest.raises(ScheduleError, match=rf"InPlace changes its input\['{name}'\] in place"):
        recomputed(InPlace(name), inputs, Topology.single())


def test_only_the_input_is_kept() -> None:
    saved: list[int] = []

    def segment(x: Tensor) -> Tensor:
        for _ in range(10):
            x = x.sin()
        return x

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel())
        return tensor

    x = torch.ones(1000, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = recomputed(segment, x, Topology.single())
    assert saved == [1000]
    backward(y.sum())
    assert gradient_of(x).shape == (1000,)


@pytest.mark.parametrize("grad", [True, False])
def test_without_gradients_nothing_runs_twice(grad: bool) -> None:
    layer = Noisy(Topology.single())
    with torch.set_grad_enabled(grad):
        out = recomputed(layer, {"x": random(1, 2, 8, seed=1), "samples": torch.tensor([0])}, Topology.single())
    assert layer.runs == 1
    assert out["x"].requires_grad is grad
