"""How a layer is run changes nothing about what it is: neither its names, nor its initial bits, nor its numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from scaling.core.errors import ConfigError
from scaling.core.nn.parameter import meta
from scaling.core.pipeline import module
from scaling.core.pipeline.compiled import Run
from scaling.core.pipeline.layer_spec import LayerSpec
from scaling.core.pipeline.module import ParallelModule
from scaling.core.pipeline.runners import Runners, runners_of
from scaling.core.topology.config import TopologyConfig
from scaling.core.topology.topology import Topology
from tests.core.pipeline.test_engine import batches, loss_of
from tests.distributed import run_distributed
from tests.reference.models import Model
from tests.reference.training import History, outcome_of, train, train_in
from tests.reference.worlds import topology_config


def compiled(run: Any) -> Any:
    return torch.compile(run, backend="eager")


class Wrapped(nn.Module):
    """What torch.compile makes of a module, but in no time: another module, whose parameters have other names."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self._orig_mod = run

    def forward(self, x: Any) -> Any:
        return self._orig_mod(x)


def digest(built: ParallelModule) -> str:
    values = {meta(p).name: p.detach().numpy().tobytes() for p in built.parameters()}
    return hashlib.sha256(repr(sorted(values.items())).encode()).hexdigest()


def linear() -> list[LayerSpec]:
    return [LayerSpec(nn.Linear, 4, 4, dtype=torch.float64) for _ in range(2)]


def build(runners: Runners, layers: list[LayerSpec]) -> ParallelModule:
    config = topology_config(global_batch_size=4, micro_batch_size=1)
    with mock.patch.object(module, "runners_of", return_value=runners):
        return ParallelModule(layers, Topology.single(), config, seed=3)


def losses(built: ParallelModule) -> list[float]:
    return [float(step(batches("tensor"), loss_of("tensor")).loss) for step in (built.train_step, built.eval_step)]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch.compile looks there
@pytest.mark.parametrize("runners", [Runners(layer=(compiled,)), Runners(layer=(Wrapped,), stage=(Wrapped, Wrapped))])
def test_a_runner_leaves_names_initial_bits_and_losses_as_they_are(runners: Runners) -> None:
    plain, run = build(Runners(), linear()), build(runners, linear())
    assert digest(run) == digest(plain)
    assert [name for name, _ in run.named_parameters()] == [name for name, _ in plain.named_parameters()]
    assert list(run.state_dict()) == list(plain.state_dict())
    assert [tensor.key for tensor in run.global_tensors()] == [tensor.key for tensor in plain.global_tensors()]
    assert losses(run) == losses(plain)


def wrapping(config: TopologyConfig, topology: Topology, *, compile_layers: bool) -> Runners:
    own = runners_of(config, topology, compile_layers=compile_layers)
    return Runners((Wrapped, *own.layer), stage=(Wrapped,), differentiated=(*own.differentiated, Wrapped))


def train_wrapped(rank: int, world_size: int, layout: dict[str, Any]) -> History:
    with mock.patch.object(module, "runners_of", wrapping):
        return train(rank, world_size, Model(dropout=0.2), layout, {}, 2)


@pytest.mark.parametrize("recompute", ["selective", "every_layer", "every_pipe_stage"])
def test_a_runner_changes_no_bit_in_any_layout_beside_other_runners(recompute: str) -> None:
    layout = {"pipe": 2, "model": 2, "sequence_parallel": True, "activation_checkpointing_type": recompute}
    found = outcome_of(run_distributed(train_wrapped, 4, layout))
    plain = train_in(Model(dropout=0.2), layout, steps=2)
    assert found.losses == plain.losses
    assert list(found.initial) == list(plain.initial)
    assert all(torch.equal(value, plain.initial[key]) for key, value in found.initial.items())
    assert all(torch.equal(value, plain.final[key]) for key, value in found.final.items())


def test_runners_stand_around_each_other_in_their_order() -> None:
    entered: list[str] = []

    def noting(name: str) -> Callable[[Run], Run]:
        def runner(run: Run) -> Run:
            def noted(x: Any) -> Any:
                entered.append(name)
                return run(x)

            return noted

        return runner

    runners = Runners((noting("inner"), noting("outer")), (noting("stage"),), (noting("differentiated"),))
    (stage,) = build(runners, [LayerSpec(nn.Identity), LayerSpec(nn.Linear, 1, 1)]).stages.values()
    of_layer = ["outer", "inner"]
    stage(torch.ones(1))
    assert entered == ["stage", *of_layer, "differentiated", *of_layer]
    for first in (torch.ones(1, requires_grad=True), None):
        entered.clear()
        with torch.set_grad_enabled(first is not None):
            stage(torch.ones(1) if first is None else first)
        assert entered == ["stage", "differentiated", *of_layer, *of_layer]


@pytest.mark.parametrize(
    ("name", "counts"),
    [("disabled", (0, 0)), ("selective", (1, 0)), ("every_layer", (1, 0)), ("every_pipe_stage", (0, 1))],
)
def test_the_configuration_names_the_runners(name: str, counts: tuple[int, int]) -> None:
    runners = runners_of(topology_config(activation_checkpointing_type=name), Topology.single())
    assert not runners.stage
    assert (len(runners.layer), len(runners.differentiated)) == counts


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x)
        return y


def compile_a_part(layer: nn.Module) -> nn.Module:
    assert isinstance(layer, Inner)
    layer.linear = compiled(layer.linear)
    return layer


def compile_in_place(layer: nn.Module) -> nn.Module:
    layer.compile(backend="eager")
    return layer


def test_a_layer_that_torch_compile_wraps_is_refused_with_the_way_to_do_it() -> None:
    for edit in (compiled, compile_a_part):
        with pytest.raises(ConfigError, match=r"layer Inner: .*renames its parameters .*layer.compile\(\) in an edit"):
            build(Runners(), [LayerSpec(Inner).then(edit)])
    plain, found = build(Runners(), [LayerSpec(Inner)]), build(Runners(), [LayerSpec(Inner).then(compile_in_place)])
    assert digest(found) == digest(plain)
    assert [name for name, _ in found.named_parameters()] == [name for name, _ in plain.named_parameters()]
    x = torch.ones(2, 4)
    assert torch.equal(found.stages["0"](x), plain.stages["0"](x))
