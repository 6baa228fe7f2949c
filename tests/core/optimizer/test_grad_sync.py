"""Gradients are summed while the backward pass runs: in one order on all ranks, each once, over whom they must."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from scaling.core.collectives import ops
from scaling.core.collectives.autograd import split_features
from scaling.core.data.types import MicroBatch
from scaling.core.errors import ScheduleError
from scaling.core.nn.linear import ColumnParallelLinear, RowParallelLinear
from scaling.core.nn.norm import RMSNorm
from scaling.core.nn.parameter import meta
from scaling.core.nn.place import Place
from scaling.core.optimizer.config import OptimizerConfig
from scaling.core.optimizer.flat_buffer import ALIGNMENT, plan
from scaling.core.optimizer.optimizer import Optimizer
from scaling.core.pipeline.layer_spec import LayerSpec, TiedLayerSpec
from scaling.core.pipeline.loss import LossOutput
from scaling.core.pipeline.module import ParallelModule
from scaling.core.topology.layout import Axis
from scaling.core.topology.topology import Topology
from tests.distributed import run_distributed
from tests.reference.assembly import module_and_optimizer
from tests.reference.worlds import connected, random, topology_config

WIDTH, LAYERS, MICRO_BATCHES = 16, 4, 3


@dataclass(frozen=True)
class Message:
    """One collective of the data axis, or a mark."""

    name: str
    elements: int = 0
    bytes: int = 0
    dtype: torch.dtype | None = None


@contextmanager
def recorded(log: list[Message]) -> Iterator[None]:
    """Write down every collective, with the size of the whole (not one rank's) tensor."""

    def wrap(name: str, whole: int) -> Callable[..., Any]:
        real = getattr(ops, name)

        def call(*arguments: Any, **options: Any) -> Any:
            tensor: Tensor = arguments[whole]
            if arguments[-1] is not None:  # the group; None is an axis of size one
                log.append(Message(name, tensor.numel(), tensor.nbytes, tensor.dtype))
            return real(*arguments, **options)

        return call

    places = {"all_reduce": 0, "all_reduce_start": 0, "reduce_scatter_start": 1, "all_gather_start": 0}
    with ExitStack() as stack:
        for name, whole in places.items():
            stack.enter_context(mock.patch.object(ops, name, wrap(name, whole)))
        yield


def build(
    layers: list[LayerSpec], topology: Topology, *, micro_batches: int = MICRO_BATCHES, **options: Any
) -> tuple[ParallelModule, Optimizer]:
    layout = topology.layout
    config = topology_config(
        pipe=layout.pipe,
        data=layout.data,
        model=layout.model,
        micro_batch_size=1,
        global_batch_size=layout.data * micro_batches,
    )
    return module_and_optimizer(layers, topology, config, OptimizerConfig.from_dict(options))


def square(output: Tensor, targets: Tensor) -> LossOutput:
    return LossOutput(output.float().square().sum(), len(output))


def batches(
    seed: int = 0, *, dtype: torch.dtype = torch.float32, shape: tuple[int, ...] = (1, WIDTH)
) -> Iterator[MicroBatch]:
    number = 0
    while True:
        yield MicroBatch(random(*shape, seed=seed + number, dtype=dtype), torch.zeros(1))
        number += 1


def linears(dtype: torch.dtype = torch.float32) -> list[LayerSpec]:
    return [LayerSpec(nn.Linear, WIDTH, WIDTH, dtype=dtype) for _ in range(LAYERS)]


def record_a_step(rank: int, world_size: int, zero: bool, bucket: int) -> list[Message]:
    with connected(data=world_size) as topology:
        module, optimizer = build(linears(torch.bfloat16), topology, zero=zero, allreduce_bucket_size=bucket)
        log: list[Message] = []
        for parameter, description in module.parameters_with_meta():
            parameter.register_post_accumulate_grad_hook(lambda _, name=description.name: log.append(Message(name)))
        with recorded(log):
            loss = module.train_step(batches(10 * rank, dtype=torch.bfloat16), square)
            log.append(Message("backward passes done"))
            optimizer.step(1, weight=loss.weight)
        return log


def named(log: list[Message], name: str) -> list[Message]:
    return [message for message in log if message.name == name]


@pytest.mark.parametrize("zero", [False, True])
def test_reductions_start_during_the_last_backward_pass_and_not_before(zero: bool) -> None:
    logs = run_distributed(record_a_step, 2, zero, 256)
    start = "reduce_scatter_start" if zero else "all_reduce_start"
    for log in logs:
        names = [message.name for message in log]
        starts = [index for index, name in enumerate(names) if name == start]
        arrivals = [index for index, name in enumerate(names) if name.startswith("layers.")]
        assert len(arrivals) == 2 * LAYERS * MICRO_BATCHES
        last_pass = arrivals[2 * LAYERS * (MICRO_BATCHES - 1)]
        assert last_pass < starts[0] < arrivals[-1]
        assert starts[-1] < names.index("backward passes done")
        # A bucket a layer, from the last layer on: each starts before the gradient of the layer below it is complete.
        assert len(starts) == LAYERS
        for number, index in enumerate(starts[:-1]):
            remaining = {name for name in names[index:] if name.startswith("layers.")}
            assert {f"layers.{layer}.weight" for layer in range(LAYERS - 1 - number)} <= remaining
    assert named(logs[0], start) == named(logs[1], start)


@pytest.mark.parametrize("bucket", [1, 700, 10**6])
def test_every_gradient_travels_once_a_step_in_float32_and_weights_as_they_are(bucket: int) -> None:
    """Of d ranks each sends (d-1)/d of a reduce-scatter or an all-gather, twice that of an all-reduce: 6 bytes an
    element with ZeRO and half-precision weights, 8 without."""
    sharded, whole = (run_distributed(record_a_step, 2, zero, bucket)[0] for zero in (True, False))
    sizes = [WIDTH, WIDTH * WIDTH] * LAYERS  # from the last parameter to the first
    _, buckets = plan(sizes, bucket_size=bucket, parts=2)
    padded = buckets[-1].stop
    assert padded < sum(sizes) + 2 * ALIGNMENT * (len(buckets) + LAYERS)
    scattered, gathered = named(sharded, "reduce_scatter_start"), named(sharded, "all_gather_start")
    reduced = named(whole, "all_reduce_start")
    assert len(scattered) == len(gathered) == len(reduced) == len(buckets) == {1: 2 * LAYERS, 700: 2, 10**6: 1}[bucket]
    assert sum(message.elements for message in scattered) == sum(message.elements for message in reduced) == padded
    assert sum(message.bytes for message in scattered) == sum(message.bytes for message in reduced) == 4 * padded
    assert sum(message.bytes for message in gathered) == 2 * padded  # bfloat16
    assert {message.dtype for message in (*scattered, *reduced)} == {torch.float32}
    assert not named(whole, "all_gather_start")
    assert not named(whole, "reduce_scatter_start")
    # Beside them: the loss of the step (a few numbers) and the squared norm.
    assert all(message.elements <= 3 for log in (sharded, whole) for message in named(log, "all_reduce"))


class Twice(nn.Module):
    """A layer whose weight gets two gradients in each backward pass, one from either segment."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            x = checkpoint(self.linear, x, use_reentrant=True)
        return x


def train_with_gradients_that_come_late(rank: int, world_size: int, steps: int, twice: bool, zero: bool) -> None:
    with connected(data=world_size) as topology:
        layers = [*linears(), *([LayerSpec(Twice)] if twice else [])]
        module, _ = build(layers, topology, zero=zero, allreduce_bucket_size=1)
        for _ in range(steps):
            module.train_step(batches(), square)


@pytest.mark.parametrize(("steps", "twice"), [(2, False), (1, True)])
@pytest.mark.parametrize("zero", [False, True])
def test_a_gradient_that_comes_after_the_sum_has_begun_is_refused(steps: int, twice: bool, zero: bool) -> None:
    with pytest.raises(ScheduleError, match=r"layers\.\d\..* has another gradient after the sum"):
        run_distributed(train_with_gradients_that_come_late, 2, steps, twice, zero)


class Fork(nn.Module):
    """Uses one of its layers, which one depends on the data; another never."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.never = (nn.Linear(WIDTH, WIDTH, dtype=torch.float64) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.left(x) if float(x.detach()[0, 0]) > 0 else self.right(x)
        return y


def use_some_parameters(rank: int, world_size: int, zero: bool) -> list[dict[str, Tensor]]:
    with connected(data=world_size) as topology:
        layers = [LayerSpec(Fork), LayerSpec(nn.Linear, WIDTH, WIDTH, dtype=torch.float64), LayerSpec(Fork)]
        module, optimizer = build(layers, topology, zero=zero, allreduce_bucket_size=1, gradient_clipping=0.0)
        history = []
        for step in range(1, 4):
            found: dict[str, Tensor] = {}
            optimizer.observer = lambda tensors, unscale, found=found: found.update(
                {t.key: torch.cat([view.flatten() for _, view in t.parts]).clone() for t in tensors}
            )
            loss = module.train_step(batches(100 * step + 10 * rank, dtype=torch.float64), square)
            optimizer.step(step, weight=loss.weight)
            history.append(found if not zero or rank == 0 else {})
        return history


def test_parameters_that_get_no_gradient_hold_nothing_up() -> None:
    """Ranks use different layers: their buckets become complete in different orders, or never."""
    whole = run_distributed(use_some_parameters, 2, False)
    for step, (one, other) in enumerate(zip(*whole, strict=True)):
        assert set(one) == set(other)
        assert all(torch.equal(one[key], other[key]) for key in one), step
        assert not one["layers.0.never.weight"].any()
        assert one["layers.0.left.weight"].any()
        assert one["layers.0.right.weight"].any()
    sharded = run_distributed(use_some_parameters, 2, True)[0]
    for found, reference in zip(sharded, whole[0], strict=True):
        for key, value in found.items():
            assert torch.equal(value, reference[key].flatten()[: len(value)])


class BiasFirst(nn.Module):
    """A linear layer that registers its parameters the other way round."""

    def __init__(self) -> None:
        super().__init__()
        inner = nn.Linear(WIDTH, WIDTH, dtype=torch.float64)
        self.bias, self.weight = inner.bias, inner.weight

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


def tied_layers(ties: str) -> list[LayerSpec]:
    """Return a layer for each letter, which names its tie; upper case where its parameters come the other way round."""

    def tied(letter: str) -> LayerSpec:
        options: dict[str, Any] = {"tie": letter.lower(), "tied_parameters": ["weight", "bias"]}
        if letter.isupper():
            return TiedLayerSpec(BiasFirst, **options)
        return TiedLayerSpec(nn.Linear, WIDTH, WIDTH, dtype=torch.float64, **options)

    return [tied(letter) for letter in ties]


def train_with_ties(rank: int, world_size: int, ties: str, pipe: int, zero: bool) -> list[tuple[str, Tensor]]:
    with connected(pipe=pipe, data=world_size // pipe) as topology:
        micro_batches = 4 // (world_size // pipe)
        module, optimizer = build(tied_layers(ties), topology, micro_batches=micro_batches, zero=zero)
        data = topology.index(Axis.DATA)
        every = [batch for _, batch in zip(range(4), batches(dtype=torch.float64), strict=False)]
        for step in range(1, 3):
            loss = module.train_step(iter(every[data :: topology.size(Axis.DATA)]), square)
            optimizer.step(step, weight=loss.weight)
        return [(meta(p).name, p.detach().clone()) for p in module.parameters()]


@pytest.mark.parametrize(
    ("ties", "world_size", "pipe", "zero"),
    [
        *[("abba", 2, 2, False), ("abba", 4, 2, False), ("abba", 4, 4, False)],
        # Between the same two stages: parameters in another order, and layers that lie between them or not.
        *[("abBA", 2, 2, False), ("abBA", 4, 2, True), ("abcCAB", 2, 2, False)],
        # Each two of three stages have a tie of their own, and all three another one.
        *[("adcbadcbd", 3, 3, False), ("acbacb", 3, 3, False)],
    ],
)
def test_ties_that_cross_are_summed_in_one_order_on_all_ranks(
    ties: str, world_size: int, pipe: int, zero: bool
) -> None:
    expected = dict(train_with_ties(0, 1, ties, 1, False))
    assert len(expected) == 2 * len(set(ties.lower()))
    for found in run_distributed(train_with_ties, world_size, ties, pipe, zero):
        assert found
        for key, value in found:
            assert torch.allclose(value, expected[key], rtol=1e-12), key


class Sliced(nn.Module):
    """A norm on slices of the sequence around a column- and a row-parallel layer."""

    def __init__(self, topology: Topology) -> None:
        super().__init__()
        self.place = Place(topology, torch.float64, sequence_parallel=True)
        self.norm = RMSNorm(WIDTH, place=self.place)
        self.back = RowParallelLinear(WIDTH, WIDTH, place=self.place)
        self.column = ColumnParallelLinear(WIDTH, WIDTH, place=self.place)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.back(split_features(x, self.place.group)))
        return y


def sum_over_the_model_axis(rank: int, world_size: int) -> list[Message]:
    with connected(model=2, data=2) as topology:
        module, optimizer = build([LayerSpec(Sliced, topology)], topology, zero=True)
        log: list[Message] = []
        loss = module.train_step(batches(topology.index(Axis.DATA), dtype=torch.float64, shape=(1, 4, WIDTH)), square)
        with recorded(log):
            optimizer.step(1, weight=loss.weight)
        gradients: list[Any] = [None] * 2
        dist.all_gather_object(
            gradients, module.state_dict()["stages.0.layers.0.norm.weight"], topology.group(Axis.MODEL)
        )
        assert torch.equal(*gradients)
        return named(log, "all_reduce")


def test_only_what_model_ranks_see_in_part_is_summed_over_them_and_only_the_own_slice() -> None:
    for log in run_distributed(sum_over_the_model_axis, 4):
        # Norm and bias lie in one buffer of 128 elements, of which each data rank sums its half; then the norm.
        assert [message.elements for message in log] == [64, 1]


def close_and_go_on(rank: int, world_size: int) -> int:
    with connected(data=world_size) as topology:
        module, optimizer = build(linears(), topology)
        optimizer.close()
        log: list[Message] = []
        with recorded(log):
            module.train_step(batches(), square)
        return len(named(log, "all_reduce_start"))


def test_a_closed_optimizer_leaves_the_parameters_alone() -> None:
    assert run_distributed(close_and_go_on, 2) == [0, 0]
