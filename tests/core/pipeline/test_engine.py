"""The engine runs any schedule on any kind of activations as if the layers ran one after another."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scaling.core.data.types import MicroBatch
from scaling.core.errors import AskedToLeave, ScheduleError
from scaling.core.nn.parameter import meta
from scaling.core.pipeline.actions import Action
from scaling.core.pipeline.layer_spec import LayerSpec
from scaling.core.pipeline.loss import LossOutput, MetricNames
from scaling.core.pipeline.module import ParallelModule
from scaling.core.topology.gate import Gate
from scaling.core.topology.topology import Topology
from tests.core.pipeline.payloads import KINDS, pack, unpack
from tests.distributed import run_distributed
from tests.reference.compare import backward, close, gradient_of
from tests.reference.worlds import connected, random, topology_config

MICRO_BATCHES, LAYERS, WIDTH = 4, 9, 4


class Mix(nn.Module):
    """Changes `a` with all of them; hands `b` on as it is, changed or (near the end) unused, and `ids` as they are."""

    def __init__(self, index: int, kind: str) -> None:
        super().__init__()
        self.index, self.kind = index, kind
        self.linear = nn.Linear(WIDTH, WIDTH, dtype=torch.float64)
        self.gate = nn.Parameter(torch.ones(WIDTH, dtype=torch.float64))
        self.table = nn.Embedding(3, WIDTH, dtype=torch.float64)

    def forward(self, payload: Any) -> Any:
        a, b, ids = unpack(self.kind, payload)
        if self.index % 3 == 0:
            b = b * self.gate
        a = torch.tanh(self.linear(a)) + self.table(ids)
        if self.index < LAYERS - 3:
            a = a * b
        return pack(self.kind, a, b, ids)


def specs(kind: str) -> list[LayerSpec]:
    return [LayerSpec(Mix, index, kind) for index in range(LAYERS)]


def batches(kind: str) -> Iterator[MicroBatch]:
    for number in range(MICRO_BATCHES):
        a, b = random(2, WIDTH, seed=number), random(2, WIDTH, seed=50 + number)
        yield MicroBatch(pack(kind, a, b, torch.tensor([number % 3, 2])), random(2, WIDTH, seed=100 + number))


def loss_of(kind: str) -> Any:
    def loss(output: Any, targets: Tensor) -> LossOutput:
        a = unpack(kind, output)[0]
        weight = (targets > 0).sum()
        return LossOutput(((a - targets).square() * (targets > 0)).sum(), weight, {"sum": a.sum(), "none": weight * 0})

    return loss


@dataclass
class Expected:
    """What running the layers one after another gives."""

    gradients: dict[str, Tensor]
    loss: float
    metric: float


def one_after_another(kind: str, scale: float) -> Expected:
    module = ParallelModule(specs(kind), Topology.single(), topology_config(), seed=3)
    total, weight, metric = torch.zeros((), dtype=torch.float64), 0.0, 0.0
    for batch in batches(kind):
        x = batch.inputs
        for layer in module.stages["0"].layers:  # type: ignore[union-attr]  # torch's Module has tensors
            x = layer(x)
        output = loss_of(kind)(x, batch.targets)
        total = total + output.loss_sum
        weight, metric = weight + float(output.weight), metric + float(output.metrics["sum"].detach())
    backward(total * scale)
    gradients = {meta(p).name: torch.zeros_like(p) if p.grad is None else p.grad for p in module.parameters()}
    return Expected(gradients, float(total.detach()) / weight, metric / weight)


def check(module: ParallelModule, kind: str, expected: Expected, what: str) -> None:
    loss = module.train_step(batches(kind), loss_of(kind), gradient_scale=torch.tensor(0.5, dtype=torch.float64))
    assert float(loss.loss) == pytest.approx(expected.loss, rel=1e-12), what
    assert loss.names == MetricNames(("none", "sum"))
    assert float(loss.metrics()["sum"]) == pytest.approx(expected.metric, rel=1e-12)
    for parameter in module.parameters():
        if parameter.grad is not None:
            close(parameter.grad, expected.gradients[meta(parameter).name], f"{what} {meta(parameter).name}")
        else:
            assert not expected.gradients[meta(parameter).name].any()
    before = {p: gradient_of(p).clone() for p in module.parameters() if p.grad is not None}
    evaluated = module.eval_step(batches(kind), loss_of(kind))
    assert float(evaluated.loss) == pytest.approx(expected.loss, rel=1e-12)
    assert all(torch.equal(gradient_of(p), gradient) for p, gradient in before.items())


def run_schedule(rank: int, world_size: int, pipe: int, kind: str, options: dict[str, Any]) -> None:
    with connected(pipe=pipe) as topology:
        config = topology_config(pipe=pipe, global_batch_size=MICRO_BATCHES, micro_batch_size=1, **options)
        module = ParallelModule(specs(kind), topology, config, seed=3)
        check(module, kind, one_after_another(kind, 0.5), kind)
        again = one_after_another(kind, 1.0)  # twice the gradient of the first step
        module.train_step(batches(kind), loss_of(kind), gradient_scale=torch.tensor(0.5))
        for parameter in module.parameters():
            if parameter.grad is not None:
                close(parameter.grad, again.gradients[meta(parameter).name])


@pytest.mark.parametrize("pipe", [1, 2, 4])
@pytest.mark.parametrize(
    "options",
    [
        {"pipe_schedule": "gpipe"},
        {"pipe_schedule": "1f1b"},
        {"pipe_schedule": "interleaved_1f1b", "pipe_chunks_per_rank": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize(
    ("kind", "recompute"), [*((kind, "disabled") for kind in KINDS), ("dataclass", "every_pipe_stage")]
)
def test_every_schedule_computes_what_the_layers_do_one_after_another(
    pipe: int, options: dict[str, Any], kind: str, recompute: str
) -> None:
    options = {**options, "activation_checkpointing_type": recompute}
    if pipe == 1:
        run_schedule(0, 1, pipe, kind, options)
    else:
        run_distributed(run_schedule, pipe, pipe, kind, options)


class Frozen(nn.Module):
    """A layer without anything to learn."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2


def train_behind_frozen_stages(rank: int, world_size: int) -> bool:
    with connected(pipe=2) as topology:
        config = topology_config(pipe=2, global_batch_size=2, micro_batch_size=1)
        ends: list[LayerSpec] = [LayerSpec(Frozen), LayerSpec(nn.Linear, WIDTH, WIDTH, dtype=torch.float64)]
        module = ParallelModule(ends, topology, config, seed=3)
        module.train_step(batches("tensor"), loss_of("tensor"))
        return all(parameter.grad is not None for parameter in module.parameters())


def test_stages_without_anything_to_learn_pass_through() -> None:
    assert run_distributed(train_behind_frozen_stages, 2) == [True, True]


class Grown(nn.Module):
    """Pads micro-batches to a length that changes from step to step."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, dtype=torch.float64))

    def forward(self, x: Tensor) -> Any:
        return {"x": x * self.weight, "skip": x[:, :1]}


class Summed(nn.Module):
    def forward(self, tree: Any) -> Tensor:
        x: Tensor = tree["x"] + tree["skip"]
        return x


def sum_up(output: Tensor, targets: Tensor) -> LossOutput:
    return LossOutput(output.sum(), output.numel())


def of_lengths(*lengths: int) -> Iterator[MicroBatch]:
    for length in lengths:
        yield MicroBatch(torch.ones(1, length, dtype=torch.float64), torch.zeros(1))


def change_shapes(rank: int, world_size: int, forget: bool) -> list[float]:
    with connected(pipe=2) as topology:
        config = topology_config(pipe=2, global_batch_size=2, micro_batch_size=1)
        module = ParallelModule([LayerSpec(Grown), LayerSpec(Summed)], topology, config, seed=3)
        losses = []
        for length in (3, 5):
            losses.append(float(module.train_step(of_lengths(length, length), sum_up).weight))
            if forget:
                module.engine.forget_shapes()
        return losses


def test_a_changed_shape_is_refused_by_field() -> None:
    with pytest.raises(
        ScheduleError,
        match=r"output of pipeline stage 0 changed .* field \['skip'\]|field \['x'\] was \[1, 3\] .* now is \[1, 5\]",
    ):
        run_distributed(change_shapes, 2, False)


def test_shapes_may_change_where_they_are_forgotten() -> None:
    assert run_distributed(change_shapes, 2, True) == [[6.0, 10.0]] * 2


def single(layer: Any = Summed, *, micro_batches: int = 2) -> ParallelModule:
    config = topology_config(global_batch_size=micro_batches, micro_batch_size=1)
    return ParallelModule([LayerSpec(Grown), LayerSpec(layer)], Topology.single(), config, seed=3)


def test_data_that_ends_early_is_an_error_that_says_where() -> None:
    with pytest.raises(ScheduleError, match="the data ended at micro-batch 1 of a step that needs more"):
        single().train_step(of_lengths(3), sum_up)
    with pytest.raises(ScheduleError, match="the data ended at micro-batch 0 of a step"):
        single().eval_step(of_lengths(), sum_up)


def test_data_is_read_only_as_far_as_a_step_needs_it() -> None:
    data = of_lengths(3, 3, 3, 3, 3)
    module = single()
    module.train_step(data, sum_up)
    module.eval_step(data, sum_up)
    assert len(list(data)) == 1


@pytest.mark.parametrize(
    ("last", "ends_by", "computed"),
    [(4, AskedToLeave, 3), (5, AskedToLeave, 4), (6, OSError, 3)],
    ids=["none has begun it", "others need this part", "it counts elsewhere"],
)
def test_data_that_fail_while_all_are_asked_to_leave_matter_only_where_the_results_count(
    last: int, ends_by: type[Exception], computed: int
) -> None:
    """Units 4 and 5 are the micro-batches of the second step, the last of which cannot be read; 6 lets it count."""
    module, gate = single(), Gate()
    gate.shared, gate.asked = True, "SIGTERM"
    module.engine.gate = gate
    losses = 0

    def data() -> Iterator[MicroBatch]:
        yield from of_lengths(3, 3, 3)
        gate.hold()
        gate.close_after(last)
        raise OSError("the disk is gone")

    def counted(output: Any, targets: Tensor) -> LossOutput:
        nonlocal losses
        losses += 1
        return sum_up(output, targets)

    given = data()
    module.train_step(given, counted)
    with pytest.raises(ends_by):
        module.train_step(given, counted)
    assert losses == computed


def test_a_loss_function_has_to_return_a_loss_output() -> None:
    with pytest.raises(ScheduleError, match="the loss function returned a Tensor; it must return LossOutput"):
        single().train_step(of_lengths(3, 3), lambda output, targets: output.sum())


def test_a_loss_that_depends_on_nothing_trained_is_refused() -> None:
    with pytest.raises(ScheduleError, match="depends on no parameter that is trained"):
        single().train_step(of_lengths(3, 3), lambda output, targets: LossOutput(output.detach().sum(), 1))


class Stray(nn.Module):
    def forward(self, x: dict[str, Tensor]) -> set[Tensor]:
        return {x["x"]}


class Unpacked(nn.Module):
    def forward(self, x: set[Tensor]) -> Tensor:
        return x.pop()


def test_what_cannot_travel_is_refused_between_stages_of_one_rank_too() -> None:
    config = topology_config(
        global_batch_size=2, micro_batch_size=1, pipe_schedule="interleaved_1f1b", pipe_chunks_per_rank=3
    )
    layers = [LayerSpec(Grown), LayerSpec(Stray), LayerSpec(Unpacked)]
    module = ParallelModule(layers, Topology.single(), config, seed=3)
    with pytest.raises(ScheduleError, match="the value is a set; layers may exchange tensors"):
        module.train_step(of_lengths(3, 3), sum_up)


class Breaks(nn.Module):
    """Fails at its third micro-batch."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH, dtype=torch.float64)
        self.runs = 0

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        if self.runs == 3:
            raise ZeroDivisionError("in the third micro-batch")
        y: Tensor = self.linear(x)
        return y


def fail_in_the_middle(rank: int, world_size: int) -> None:
    with connected(pipe=4) as topology:
        config = topology_config(pipe=4, global_batch_size=4, micro_batch_size=1)
        layers = [LayerSpec(nn.Linear, WIDTH, WIDTH, dtype=torch.float64) for _ in range(4)]
        layers[1] = LayerSpec(Breaks)
        module = ParallelModule(layers, topology, config, seed=3)
        module.train_step(batches("tensor"), loss_of("tensor"))


def test_an_error_in_a_layer_is_not_held_up_by_messages_under_way() -> None:
    with pytest.raises(ZeroDivisionError, match="in the third micro-batch"):
        run_distributed(fail_in_the_middle, 4)


class Watched(nn.Module):
    """Remembers, weakly, the tensors that pass on their way to the next stage or as losses."""

    def __init__(self, *, sends: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH, dtype=torch.float64)
        self.sends = sends
        self.seen: list[weakref.ref[Tensor]] = []
        self.peak = 0

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x)
        if self.sends:
            self.watch(y)
        return y

    def watch(self, tensor: Tensor) -> None:
        self.seen.append(weakref.ref(tensor))
        self.peak = max(self.peak, self.alive)

    @property
    def alive(self) -> int:
        gc.collect()
        return sum(reference() is not None for reference in self.seen)


def watch_activations(rank: int, world_size: int, schedule: str, frozen: bool) -> tuple[int, int, int]:
    with connected(pipe=2) as topology:
        config = topology_config(pipe=2, global_batch_size=4, micro_batch_size=1, pipe_schedule=schedule)
        layers = [LayerSpec(Watched, sends=True), LayerSpec(Watched, sends=False)]
        module = ParallelModule(layers, topology, config, seed=3)
        layer = next(layer for layer in module.modules() if isinstance(layer, Watched))
        layer.requires_grad_(not (layer.sends and frozen))

        def loss(output: Tensor, targets: Tensor) -> LossOutput:
            layer.watch(summed := (output - targets).sum())
            return LossOutput(summed, 1)

        module.train_step(batches("tensor"), loss)
        peak, after_training = layer.peak, layer.alive
        module.eval_step(batches("tensor"), loss)
        return peak, after_training, layer.alive


def test_activations_are_kept_no_longer_than_the_schedule_needs_them() -> None:
    assert run_distributed(watch_activations, 2, "gpipe", False) == [(4, 0, 0), (4, 0, 0)]
    assert run_distributed(watch_activations, 2, "1f1b", False) == [(2, 0, 0), (1, 0, 0)]


def test_activations_without_a_backward_pass_are_kept_no_longer_than_they_are_sent() -> None:
    assert run_distributed(watch_activations, 2, "gpipe", True) == [(1, 0, 0), (4, 0, 0)]


def test_every_action_passes_the_timer() -> None:
    timed: list[Action] = []

    class Timing:
        def __init__(self, action: Action) -> None:
            self.action = action

        def __enter__(self) -> None:
            timed.append(self.action)

        def __exit__(self, *error: object) -> None:
            pass

    module = single()
    module.engine.timer = Timing
    module.train_step(of_lengths(3, 3), sum_up)
    assert [type(action).__name__ for action in timed] == ["Forward", "Backward"] * 2
