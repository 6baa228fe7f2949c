"""Stages: layers run one after another, with or without recomputation, and errors that say in which."""

from __future__ import annotations

import copy
import sys
import traceback

import pytest
import torch
from torch import Tensor, nn

from scaling.core.errors import LayoutError
from scaling.core.pipeline.runners import runners_of
from scaling.core.pipeline.stage import Stage
from scaling.core.topology.topology import Topology
from tests.reference.compare import backward, gradient_of
from tests.reference.worlds import random, topology_config


def stage_of(*layers: nn.Module, recompute: str = "disabled") -> Stage:
    stage = Stage(layers, range(len(layers)))
    stage.run_with(runners_of(topology_config(activation_checkpointing_type=recompute), Topology.single()))
    return stage


class Counted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4, dtype=torch.float64)
        self.runs = 0

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        result: Tensor = self.linear(x).tanh()
        return result


@pytest.mark.parametrize("recompute", ["disabled", "selective", "every_layer", "every_pipe_stage"])
def test_a_stage_runs_its_layers_one_after_another_and_again_where_asked(recompute: str) -> None:
    layers = [Counted() for _ in range(3)]
    stage = stage_of(*layers, recompute=recompute)
    plain_stage = stage_of(*copy.deepcopy(layers))
    for one in (stage, plain_stage):
        x = random(2, 4, seed=1).requires_grad_()
        backward(one(x).sum())
    assert [layer.runs for layer in layers] == [1 if recompute == "disabled" else 2] * 3
    for a, b in zip(stage.parameters(), plain_stage.parameters(), strict=True):
        assert torch.equal(gradient_of(a), gradient_of(b))
    with torch.no_grad():
        stage.eval()(x)
    assert [layer.runs for layer in layers] == [2 if recompute == "disabled" else 3] * 3


class Forgetful(nn.Module):
    """A layer without a return."""

    def forward(self, x: Tensor) -> None:
        x + 1


@pytest.mark.parametrize("recompute", ["disabled", "selective", "every_layer", "every_pipe_stage"])
def test_a_layer_that_returns_nothing_is_named(recompute: str) -> None:
    stage = stage_of(nn.Linear(4, 4), Forgetful(), nn.Linear(4, 4), recompute=recompute)
    with pytest.raises(LayoutError, match=r"layer 1 \(Forgetful\) returned None; let its forward return"):
        stage(torch.ones(2, 4))


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exceptions have no notes")
@pytest.mark.parametrize("recompute", ["disabled", "selective", "every_layer", "every_pipe_stage"])
def test_an_error_says_in_which_layer_and_what_it_was_given(recompute: str) -> None:
    stage = stage_of(nn.Linear(4, 4), nn.Linear(5, 5), nn.Linear(4, 4), recompute=recompute)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied") as caught:
        stage(torch.ones(2, 4))
    shown = traceback.format_exception(caught.value)[-1]
    assert shown == "in layer 1 (Linear) of the model, which was given torch.float32 [2, 4]\n"
