"""Layers and stages that train nothing: the same numbers, no message and no work that nobody needs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from scaling.core.collectives import ops
from scaling.core.data.types import MicroBatch
from scaling.core.nn.linear import linear
from scaling.core.optimizer.config import OptimizerConfig
from scaling.core.optimizer.groups import GroupPattern, ParameterGroup
from scaling.core.optimizer.lr_schedule import LearningRateSchedulerConfig
from scaling.core.pipeline.layer_spec import LayerSpec
from scaling.core.pipeline.loss import LossOutput
from scaling.core.pipeline.module import ParallelModule
from scaling.core.pipeline.partition import partition
from scaling.core.topology.layout import Axis
from scaling.core.topology.topology import Topology
from tests.distributed import run_distributed
from tests.reference.assembly import module_and_optimizer
from tests.reference.models import Loss, Model, layer_specs, micro_batches
from tests.reference.sharding import GATHER, SCATTER, SUM, Messages
from tests.reference.training import Part, join, parts_of
from tests.reference.worlds import connected, random, topology_config

LAYERS, WIDTH, SAMPLES, STEPS = 6, 4, 4, 2

TRAINED = ((5,), (0,), (2,), (1, 4), (0, 1, 2, 3, 4, 5))
"""Numbers of the layers that are trained: the last one, the first one, one between, in two stages, all."""


class Layer(nn.Module):
    """A layer whose parameters have names of their own, which remembers how often it ran and for what."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.add_module(f"linear_{index}", nn.Linear(WIDTH, WIDTH, dtype=torch.float64))
        self.linear = (self.get_submodule(f"linear_{index}"),)
        self.index, self.runs, self.differentiable = index, 0, False

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        y: Tensor = self.linear[0](x)
        y = y.tanh() + x
        self.differentiable = y.requires_grad
        return y


def batches(step: int, topology: Topology) -> Iterator[MicroBatch]:
    for number in range(topology.index(Axis.DATA), SAMPLES, topology.size(Axis.DATA)):
        yield MicroBatch(random(1, WIDTH, seed=10 * step + number), random(1, WIDTH, seed=100))


def loss(output: Tensor, targets: Tensor) -> LossOutput:
    return LossOutput((output - targets).square().sum(), torch.ones(()))


def only(trained: tuple[int, ...]) -> tuple[GroupPattern, ...]:
    schedule = LearningRateSchedulerConfig(learning_rate=1e-2)
    names = tuple(rf"^linear_{index}\." for index in trained)
    return (GroupPattern(group=ParameterGroup(name="some", learning_rate_scheduler=schedule), include=names),)


@dataclass
class Seen:
    """What one rank saw of a training."""

    losses: list[float]
    norms: list[float]
    sends: int
    """Messages to other stages in the last step."""
    again: dict[int, int]
    """How often each layer here was run again in the last step, for its backward pass."""
    differentiable: dict[int, bool]
    """Whether each layer here has a backward pass."""
    parts: list[Part]
    """Weights and the optimizer's tensors, after the last step."""


def train(topology: Topology, trained: tuple[int, ...], zero: bool = True, **options: Any) -> Seen:
    sizes = {"pipe": topology.size(Axis.PIPE), "data": topology.size(Axis.DATA)}
    config = topology_config(global_batch_size=SAMPLES, micro_batch_size=1, **sizes, **options)
    module, optimizer = module_and_optimizer(
        [LayerSpec(Layer, index) for index in range(LAYERS)],
        topology,
        config,
        OptimizerConfig.from_dict({"zero": zero, "gradient_clipping": 0.1}),
        groups=only(trained),
        allow_missing=True,
        usual_weight=SAMPLES,
    )
    layers = [layer for layer in module.modules() if isinstance(layer, Layer)]
    losses, norms, sends = [], [], 0
    for step in range(1, STEPS + 1):
        for layer in layers:
            layer.runs = 0
        with mock.patch.object(ops, "send_start", wraps=ops.send_start) as send:
            found = module.train_step(batches(step, topology), loss, gradient_scale=optimizer.gradient_scale)
        sends = send.call_count
        norms.append(float(optimizer.step(step, weight=found.weight).global_grad_norm))
        losses.append(float(found.loss))
    again = {layer.index: layer.runs - module.micro_batches for layer in layers}
    differentiable = {layer.index: layer.differentiable for layer in layers}
    losses.append(float(module.eval_step(batches(STEPS + 1, topology), loss).loss))
    optimizer.restore(optimizer.state())
    parts = parts_of((*module.global_tensors(), *optimizer.global_tensors()))
    optimizer.close()
    return Seen(losses, norms, sends, again, differentiable, parts)


def train_in_all_ways(rank: int, world_size: int, pipe: int, ways: list[dict[str, Any]]) -> list[Seen]:
    with connected(pipe=pipe, data=world_size // pipe) as topology:
        return [train(topology, trained, **way) for trained, way in product(TRAINED, ways)]


def check(ranks: list[Seen], trained: tuple[int, ...], stages: int, pipe: int, way: dict[str, Any]) -> None:
    """Compare a training with that of one process."""
    alone, first = train(Topology.single(), trained), min(trained)
    expected, found = join([alone.parts]), join([seen.parts for seen in ranks])
    assert found.keys() == expected.keys()
    updated = {key for key in found if key.startswith("optimizer.")}
    assert updated == {
        f"optimizer.{slot}.layers.{index}.linear_{index}.{name}"
        for slot, index, name in product(("exp_avg", "exp_avg_sq"), trained, ("weight", "bias"))
    }
    for key, values in expected.items():
        torch.testing.assert_close(found[key], values, rtol=1e-12, atol=1e-12, msg=f"{key} {trained} {way}")
    for seen in ranks:
        assert seen.losses == pytest.approx(alone.losses, rel=1e-12)
        assert seen.norms == pytest.approx(alone.norms, rel=1e-12)
        for index, differentiable in seen.differentiable.items():
            assert differentiable == (index >= first)
            recomputed = way.get("activation_checkpointing_type", "disabled") != "disabled" and differentiable
            assert seen.again[index] == recomputed * SAMPLES * pipe // len(ranks), (index, trained, way)
    behind = [layers[-1] >= first for layers in partition([1.0] * LAYERS, stages)[:-1]]  # a gradient comes back there
    assert sum(seen.sends for seen in ranks) == SAMPLES * sum(1 + back for back in behind), (trained, way)


WAYS = (
    (2, 2, [{"pipe_schedule": "gpipe"}, {"activation_checkpointing_type": "every_pipe_stage"}]),
    (3, 3, [{}, {"pipe_schedule": "gpipe", "activation_checkpointing_type": "every_layer"}]),
    (
        4,
        2,
        [
            {"pipe_schedule": "interleaved_1f1b", "pipe_chunks_per_rank": 2},
            {"zero": False, "pipe_schedule": "interleaved_1f1b", "pipe_chunks_per_rank": 2},
        ],
    ),
)


@pytest.mark.parametrize(("world_size", "pipe", "ways"), WAYS, ids=["2", "3", "2x2"])
def test_stages_that_train_nothing_change_no_number_and_get_no_message_they_do_not_need(
    world_size: int, pipe: int, ways: list[dict[str, Any]]
) -> None:
    """At the front, where no gradient is sent to them, between others, where they hand it on, and at the end.

    Nor is anything run again that has no backward pass; the norm and the moments are those of what is trained.
    """
    by_rank = run_distributed(train_in_all_ways, world_size, pipe, ways)
    for case, (trained, way) in enumerate(product(TRAINED, ways)):
        stages = pipe * way.get("pipe_chunks_per_rank", 1)
        check([seen[case] for seen in by_rank], trained, stages, pipe, way)


@pytest.mark.parametrize("recompute", ["selective", "every_layer", "every_pipe_stage"])
def test_one_process_runs_nothing_again_before_the_first_layer_that_is_trained(recompute: str) -> None:
    way: dict[str, Any] = {"activation_checkpointing_type": recompute}
    for trained in TRAINED:
        check([train(Topology.single(), trained, **way)], trained, 1, 1, way)


PASSED = {
    r".": (7, 7),
    r"layers\.4\.embedding": (0, 0),
    r"layers\.4\.norm": (1, 0),
    r"layers\.3\.": (3, 2),
    r"layers\.3\.attention\.query": (2, 2),
    r"layers\.3\.mlp\.dense_out": (1, 1),
    r"layers\.[13]\.mlp\.dense_out|layers\.4\.embedding": (5, 5),
}
"""For trained parameters: how often their gradients pass, on the way to them, where activations enter sharded layers
and where they leave them."""


def count_messages_of_backward_passes(rank: int, world_size: int, sequence_parallel: bool) -> None:
    model = Model(tied=False, kv_heads=2)
    with connected(model=world_size, sequence_parallel=sequence_parallel) as topology:
        config = topology_config(model=world_size, global_batch_size=8, micro_batch_size=8)
        module, loss_function = (
            ParallelModule(layer_specs(model, topology), topology, config, seed=1),
            Loss(model, topology),
        )
        for trained, (entered, left) in PASSED.items():
            for parameter, description in module.parameters_with_meta():
                parameter.requires_grad_(re.search(trained, description.name) is not None)
            found = []
            for step in (module.train_step, module.eval_step):
                with Messages() as messages:
                    step(micro_batches(model, 1, config, topology), loss_function)
                found.append(Counter(messages.names))
            expected = {SCATTER: entered, GATHER: left} if sequence_parallel else {SUM: entered}
            assert found[0] - found[1] == +Counter(expected), trained


@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_model_ranks_add_up_no_gradient_that_leads_to_nothing_trained(sequence_parallel: bool) -> None:
    run_distributed(count_messages_of_backward_passes, 2, sequence_parallel)


class Half(nn.Module):
    """Half precision under parameters in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(WIDTH, WIDTH, dtype=torch.float16)
        self.added = nn.Parameter(torch.zeros(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.base.weight, self.base.bias) + self.added.half()


def test_the_loss_is_scaled_where_gradients_pass_through_frozen_float16() -> None:
    schedule = LearningRateSchedulerConfig(learning_rate=1e-2)
    added = GroupPattern(group=ParameterGroup(name="added", learning_rate_scheduler=schedule), include=("added",))
    config = topology_config(global_batch_size=1, micro_batch_size=1)
    _, optimizer = module_and_optimizer(
        [LayerSpec(Half)], Topology.single(), config, groups=[added], allow_missing=True
    )
    assert optimizer.loss_scaler.enabled
