"""The same model trains the same way in every layout: against one dense program, weight by weight."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scaling.core.boxes import Box
from scaling.core.data.types import MicroBatch
from scaling.core.errors import ConfigError, LayoutError
from scaling.core.nn.parameter import meta
from scaling.core.pipeline.layer_spec import LayerSpec, TiedLayerSpec
from scaling.core.pipeline.loss import LossOutput, MetricNames
from scaling.core.pipeline.module import ParallelModule
from scaling.core.topology.layout import Axis
from scaling.core.topology.placement import CUT, Placement
from scaling.core.topology.topology import Topology
from tests.distributed import run_distributed
from tests.reference.compare import close
from tests.reference.models import Model, layer_specs
from tests.reference.sharding import assembled
from tests.reference.training import Outcome, initial_values, join, parts_of, train_densely, train_in
from tests.reference.worlds import connected, random, topology_config

Options = dict[str, Any]

TIED = Model()
UNTIED = Model(tied=False, kv_heads=2)
INTERLEAVED: Options = {"pipe_schedule": "interleaved_1f1b", "pipe_chunks_per_rank": 2}

LAYOUTS: dict[str, tuple[Model, Options, Options]] = {
    "one process": (TIED, {}, {}),
    "one process, one batch": (TIED, {"micro_batch_size": 8}, {}),
    "data": (TIED, {"data": 2, "micro_batch_size": 2}, {}),
    "data, zero": (TIED, {"data": 4}, {"zero": True, "allreduce_bucket_size": 300}),
    "model": (TIED, {"model": 2, "micro_batch_size": 4}, {}),
    "model, sequence": (UNTIED, {"model": 4, "micro_batch_size": 2, "sequence_parallel": True}, {}),
    "pipe": (TIED, {"pipe": 4}, {}),
    "pipe, gpipe": (UNTIED, {"pipe": 2, "pipe_schedule": "gpipe", "micro_batch_size": 2}, {}),
    "pipe, interleaved": (TIED, {"pipe": 2, **INTERLEAVED}, {}),
    "pipe, uneven": (TIED, {"pipe": 3, "pipe_partition_overwrite": [0, 1, 4, 5]}, {}),
    "recomputed": (TIED, {"pipe": 2, "activation_checkpointing_type": "every_layer"}, {}),
    "all": (TIED, {"pipe": 2, "data": 2, "model": 2, "sequence_parallel": True}, {"zero": True}),
    "everything": (
        UNTIED,
        {
            **{"pipe": 2, "data": 2, "model": 2, "sequence_parallel": True, **INTERLEAVED},
            "activation_checkpointing_type": "every_pipe_stage",
        },
        {"zero": True, "allreduce_bucket_size": 500},
    ),
}


@cache
def alone(model: Model) -> Outcome:
    return train_in(model, {})


@cache
def densely(model: Model) -> Outcome:
    return train_densely(model, alone(model).initial)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_trains_as_the_dense_program_does(name: str) -> None:
    model, layout, options = LAYOUTS[name]
    found, expected = train_in(model, layout, **options), densely(model)
    assert found.losses == pytest.approx(expected.losses, rel=1e-12)
    assert found.norms == pytest.approx(expected.norms, rel=1e-12)
    assert found.evaluation[:1] == pytest.approx(expected.evaluation, rel=1e-12)
    weight_and_count, worst = slice(1, 3), slice(3, None)
    assert found.evaluation[weight_and_count] == alone(model).evaluation[weight_and_count]
    assert found.evaluation[worst] == pytest.approx(alone(model).evaluation[worst], rel=1e-12)
    for state, reference in ((found.first, expected.first), (found.final, expected.final)):
        assert set(state) == set(reference)
        for key, value in state.items():
            close(value, reference[key], key, tolerance=1e-11)
    for key, value in found.initial.items():
        assert torch.equal(value, alone(model).initial[key]), f"{key} starts with other bits"


@pytest.mark.parametrize(
    "layout",
    [
        {"data": 2, "micro_batch_size": 2},
        {"pipe": 2, "model": 2, "sequence_parallel": True, "activation_checkpointing_type": "every_layer"},
        {"pipe": 2, "data": 2, **INTERLEAVED},
    ],
)
def test_dropout_is_the_same_in_every_layout(layout: Options) -> None:
    model = Model(dropout=0.2)
    found = train_in(model, layout, zero="data" in layout)
    assert found.losses == pytest.approx(alone(model).losses, rel=1e-12)
    assert found.losses != pytest.approx(alone(TIED).losses, rel=1e-3)
    for key, value in found.final.items():
        close(value, alone(model).final[key], key, tolerance=1e-11)


@cache
def dropping(recompute: str, *, per_rank: bool) -> Outcome:
    layout = {"pipe": 2, "model": 2, "sequence_parallel": True, "activation_checkpointing_type": recompute}
    return train_in(Model(dropout=0.2, per_rank_dropout=per_rank), layout, steps=2)


@pytest.mark.parametrize(
    ("recompute", "per_rank"),
    [
        ("selective", False),
        ("selective", True),
        ("every_layer", False),
        ("every_layer", True),
        ("every_pipe_stage", True),
    ],
)
def test_recomputation_changes_no_bit_with_dropout_of_either_kind(recompute: str, per_rank: bool) -> None:
    kept, again = dropping("disabled", per_rank=per_rank), dropping(recompute, per_rank=per_rank)
    assert again.losses == kept.losses
    assert all(torch.equal(value, kept.final[key]) for key, value in again.final.items())


def test_the_same_layout_twice_gives_the_same_bits() -> None:
    model, layout = Model(dropout=0.2), {"data": 2, "model": 2, "pipe": 2}
    once, twice = (train_in(model, layout, steps=2, zero=True) for _ in range(2))
    assert once.losses == twice.losses
    assert once.norms == twice.norms
    assert all(torch.equal(value, twice.final[key]) for key, value in once.final.items())


@pytest.mark.parametrize("layout", [{"data": 2}, {"model": 2, "pipe": 2, "sequence_parallel": True}])
def test_float32_agrees_to_float32(layout: Options) -> None:
    model = Model(dtype=torch.float32)
    found, reference = train_in(model, layout), alone(model)
    assert found.losses == pytest.approx(reference.losses, rel=1e-5)
    assert found.losses == pytest.approx(densely(TIED).losses, rel=1e-3)
    assert all(torch.equal(found.initial[key], reference.initial[key]) for key in found.initial)


def gather_initial(rank: int, world_size: int, model: Model) -> dict[str, Tensor]:
    with connected(pipe=2, data=2, model=2) as topology:
        config = topology_config(pipe=2, data=2, model=2)
        module = ParallelModule(layer_specs(model, topology), topology, config, seed=11)
        whole: dict[str, Tensor] = {}
        for parameter, description in module.parameters_with_meta():
            whole |= assembled(parameter, description, topology)
            for piece in description.pieces:
                assert torch.equal(whole[piece.key], initial_values(piece, 11).double()), piece.key
        return whole


@pytest.mark.parametrize("model", [UNTIED, TIED], ids=["apart", "fused"])
def test_every_weight_is_a_function_of_seed_and_name(model: Model) -> None:
    found = run_distributed(gather_initial, 8, model)
    single = ParallelModule(layer_specs(model, Topology.single()), Topology.single(), topology_config(), seed=11)
    expected = {piece.key: piece.local(p.detach()) for p in single.parameters() for piece in meta(p).pieces}
    assert ("layers.1.attention.query.weight" in {meta(p).name for p in single.parameters()}) == (model is UNTIED)
    assert set().union(*found) == set(expected)
    for whole in found:
        assert all(torch.equal(value, expected[key]) for key, value in whole.items())


class WithBuffers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.register_buffer("count", torch.tensor([5.0]))
        self.register_buffer("scratch", torch.zeros(2), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x)
        return y


def hold_buffers(rank: int, world_size: int) -> Any:
    with connected(pipe=2, data=2) as topology:
        layers = [LayerSpec(WithBuffers), LayerSpec(WithBuffers)]
        module = ParallelModule(layers, topology, topology_config(pipe=2, data=2), seed=1)
        return parts_of(module.global_tensors())


def test_persistent_buffers_are_part_of_the_model_and_owned_once() -> None:
    whole = join(run_distributed(hold_buffers, 4))
    assert sorted(whole) == sorted(
        f"layers.{index}.{name}" for index in (0, 1) for name in ("count", "linear.bias", "linear.weight")
    )
    assert whole["layers.1.count"].tolist() == [5.0]


def test_global_tensors_are_views_through_which_weights_are_loaded() -> None:
    module = ParallelModule(layer_specs(TIED, Topology.single()), Topology.single(), topology_config(), seed=1)
    tensors = list(module.global_tensors())
    assert [tensor.key for tensor in tensors] == [piece.key for p in module.parameters() for piece in meta(p).pieces]
    assert {f"layers.1.attention.{name}.weight" for name in ("query", "key", "value")} <= {t.key for t in tensors}
    for tensor in tensors:
        ((box, view),) = tensor.parts
        assert box == Box((0,) * len(tensor.shape), tensor.shape)
        view.fill_(3.0)
    assert all(parameter.eq(3).all() for parameter in module.parameters())


def test_parameters_are_yielded_once_and_counted_by_the_stages_that_hold_them() -> None:
    config = topology_config(
        global_batch_size=2, micro_batch_size=1, pipe_schedule="interleaved_1f1b", pipe_chunks_per_rank=5
    )
    module = ParallelModule(layer_specs(TIED, Topology.single()), Topology.single(), config, seed=1)
    names = [description.name for _, description in module.parameters_with_meta()]
    assert len(names) == len(set(names))
    uses = module.uses()
    assert {meta(p).name: count for p, count in uses.items() if count > 1} == {"layers.0.embedding.weight": 2}
    assert len(uses) == len(names)
    along_pipe = {meta(p).name: meta(p).placements.on(Axis.PIPE) for p in uses}
    assert {name: placement for name, placement in along_pipe.items() if placement != CUT} == {
        "layers.0.embedding.weight": Placement(indices=(0,), gradient_in_parts=True)
    }
    assert module.first
    assert module.last


def test_impossible_models_are_refused_when_they_are_made() -> None:
    layer = LayerSpec(nn.Linear, 2, 2)
    config = topology_config(pipe_schedule="interleaved_1f1b", pipe_chunks_per_rank=3)
    with pytest.raises((ConfigError, LayoutError), match="stage"):
        ParallelModule([layer, layer], Topology.single(), config, seed=1)
    tied = TiedLayerSpec(nn.Linear, 2, 2, tie="t", tied_parameters=["weight"])
    with pytest.raises(ConfigError, match="joins it to no other layer"):
        ParallelModule([layer, tied], Topology.single(), topology_config(), seed=1)


def weighted(samples: int, *weights: float) -> Iterator[MicroBatch]:
    for number, weight in enumerate(weights):
        yield MicroBatch(random(samples, 4, seed=number), torch.full((samples, 4), weight, dtype=torch.float64))


def weighted_loss(output: Tensor, targets: Tensor) -> LossOutput:
    return LossOutput((output.square() * targets).sum(), targets.sum(), {"ones": targets.sum()})


def report_from_the_last_stage(rank: int, world_size: int) -> list[Any]:
    with connected(pipe=2, data=2) as topology:
        config = topology_config(pipe=2, data=2, global_batch_size=4, micro_batch_size=1)
        layers = [LayerSpec(nn.Linear, 4, 4, dtype=torch.float64) for _ in range(2)]
        module = ParallelModule(layers, topology, config, seed=1)
        reports = []
        for weights in ((1.0, 0.0) if topology.index(Axis.DATA) else (3.0, 2.0), (0.0, 0.0)):
            loss = module.train_step(weighted(1, *weights), weighted_loss)
            reports += [float(loss.weight), float(loss.loss), loss.names, float(loss.metrics()["ones"])]
            gradients = torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])
            reports.append(bool(gradients.isfinite().all()))
            for parameter in module.parameters():
                parameter.grad = None
        reports.append(float(gradients.abs().max()))
        return reports


def test_all_ranks_learn_what_only_the_last_stage_knows() -> None:
    found = run_distributed(report_from_the_last_stage, 4)
    assert all(report == found[0] for report in found)
    weight, _, names, ones, finite, empty_weight, empty_loss, _, empty_ones, empty_finite, largest = found[0]
    assert (weight, names, ones, finite) == (24.0, MetricNames(("ones",)), 1.0, True)
    assert (empty_weight, empty_loss, empty_ones, empty_finite, largest) == (0.0, 0.0, 0.0, True, 0.0)


def test_the_streams_of_ranks_follow_from_the_seed_of_the_model() -> None:
    topology, states = Topology.single(), []
    for seed in (1, 2, 1):
        ParallelModule([LayerSpec(nn.Linear, 2, 2)], topology, topology_config(), seed=seed)
        states.append(topology.rng.state())
    for stream, state in states[0].items():
        assert [torch.equal(later[stream], state) for later in states] == [True, False, True]


class Modes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4, dtype=torch.float64)
        self.seen: list[tuple[bool, bool]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append((self.training, torch.is_grad_enabled()))
        y: Tensor = self.linear(x)
        return y


def test_steps_set_the_mode_of_the_layers() -> None:
    module = ParallelModule([LayerSpec(Modes)], Topology.single(), topology_config(), seed=1)
    (layer,) = (layer for layer in module.modules() if isinstance(layer, Modes))
    module.train_step(weighted(1, 1.0), weighted_loss)
    module.eval_step(weighted(1, 1.0), weighted_loss)
    module.eval_step(weighted(1, 1.0), weighted_loss, dropout=True)
    module.train_step(weighted(1, 1.0), weighted_loss)
    assert layer.seen == [(True, True), (False, False), (True, False), (True, True)]
