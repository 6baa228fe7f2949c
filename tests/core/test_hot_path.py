"""The steady state: how much Python a step costs, and that the host never waits for the device.

Calls of Python functions are counted, not seconds: about the same on every machine, and what a GPU that computes a
small micro-batch in microseconds would wait for. Budgets are a quarter above what was counted with Python 3.11.
Collectives are torch's own, as on a GPU.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cache
from types import FrameType
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from scaling.core.data.types import MicroBatch
from scaling.core.topology.config import TopologyConfig
from scaling.core.topology.topology import Topology
from tests.distributed import run_distributed
from tests.reference.models import Loss, Model, micro_batches
from tests.reference.training import build
from tests.reference.worlds import topology_config

Layout = tuple[tuple[str, Any], ...]

ALONE: Layout = ()
DATA: Layout = (("data", 2),)
MODEL: Layout = (("model", 2),)
SEQUENCE: Layout = (("model", 2), ("sequence_parallel", True))
PIPE: Layout = (("pipe", 2),)

PER_LAYER = {ALONE: 140, DATA: 156, MODEL: 250, SEQUENCE: 345}
"""Python calls of a transformer layer (attention, SwiGLU, two norms), forward and backward, for one micro-batch."""

PER_MICRO_BATCH = {ALONE: 92, DATA: 95, MODEL: 182, SEQUENCE: 224}
"""Python calls of everything around the layers (engine, embedding, head, loss), for one micro-batch."""

PER_MESSAGE = 100
"""Python calls that sending and receiving add to a micro-batch, on one of two pipeline ranks."""

PER_STEP = 230
"""Python calls of an optimizer step for two groups, whatever the model."""

WAITS = ("item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__")


class Calls:
    """Counts the calls of Python functions inside `with counting()`."""

    def __init__(self) -> None:
        self.count = 0

    def _note(self, frame: FrameType, event: str, argument: Any) -> None:
        self.count += event == "call"

    @contextmanager
    def counting(self) -> Iterator[None]:
        sys.setprofile(self._note)
        try:
            yield
        finally:
            sys.setprofile(None)


def whole_rows(model: Model, step: int, config: TopologyConfig, topology: Topology) -> Iterator[MicroBatch]:
    """Return micro-batches without packed documents: building a mask reads their ids, on a CPU, where that is free."""
    found = []
    for batch in micro_batches(model, step, config, topology):
        inputs = {name: value for name, value in batch.inputs.items() if name != "documents"}
        found.append(MicroBatch(inputs, batch.targets))
    return iter(found)


def count_a_step(
    rank: int, world_size: int, layout: Layout, blocks: int, micro_batch: int, options: dict[str, Any]
) -> tuple[int, int]:
    """Return the Python calls of the second training step, and of its optimizer step."""
    model = Model(blocks=blocks, dtype=torch.float32, tied=False)
    config = topology_config(global_batch_size=8, micro_batch_size=micro_batch, shared_memory=False, **dict(layout))
    with Topology.connect(config) as topology:
        module, optimizer = build(model, config, topology, options)
        loss_function = Loss(model, topology)
        training, update = Calls(), Calls()
        for step in (1, 2):
            batches = whole_rows(model, step, config, topology)
            with training.counting() if step == 2 else nullcontext():
                loss = module.train_step(batches, loss_function, gradient_scale=optimizer.gradient_scale)
            with update.counting() if step == 2 else nullcontext():
                optimizer.step(step, weight=loss.weight)
        return training.count, update.count


@cache
def calls(layout: Layout, blocks: int, micro_batch: int = 1, *, zero: bool = False) -> tuple[int, int]:
    world = 1
    for axis in ("pipe", "data", "model"):
        world *= dict(layout).get(axis, 1)
    return run_distributed(count_a_step, world, layout, blocks, micro_batch, {"zero": zero})[0]


def of_one_more_micro_batch(layout: Layout, layers: int) -> float:
    """Return the calls by which a step grows when its samples come in more, smaller micro-batches."""
    data_ranks: int = dict(layout).get("data", 1)
    more, fewer = 8 // data_ranks, 4 // data_ranks  # of one sample, of two
    return (calls(layout, layers, 1)[0] - calls(layout, layers, 2)[0]) / (more - fewer)


def of_one_more_layer(layout: Layout) -> float:
    """Return the calls by which a micro-batch grows when the model has more layers."""
    return (of_one_more_micro_batch(layout, 8) - of_one_more_micro_batch(layout, 2)) / (8 - 2)


def around_the_layers(layout: Layout) -> float:
    """Return the calls of a micro-batch apart from its layers."""
    return of_one_more_micro_batch(layout, 2) - 2 * of_one_more_layer(layout)


@pytest.mark.parametrize("layout", PER_LAYER, ids=str)
def test_a_layer_costs_few_python_calls_for_each_micro_batch(layout: Layout) -> None:
    assert of_one_more_layer(layout) <= PER_LAYER[layout]
    assert around_the_layers(layout) <= PER_MICRO_BATCH[layout]


def test_messages_between_stages_cost_few_python_calls() -> None:
    # On the first of two ranks: embedding and half of the blocks, and what it sends and receives.
    messages = of_one_more_micro_batch(PIPE, 2) - of_one_more_layer(ALONE) - around_the_layers(ALONE)
    assert messages <= PER_MESSAGE


@pytest.mark.parametrize(("layout", "zero"), [(ALONE, False), (DATA, False), (DATA, True), (SEQUENCE, False)], ids=str)
def test_an_optimizer_step_costs_the_same_for_any_number_of_parameters(layout: Layout, zero: bool) -> None:
    small, large = (calls(layout, blocks, zero=zero)[1] for blocks in (2, 8))
    assert small == large <= PER_STEP


def refuse(name: str) -> Any:
    def waited(*arguments: Any, **options: Any) -> Any:
        raise AssertionError(f"the host waited for the device: {name}")

    return waited


def train_without_waiting(rank: int, world_size: int) -> bool:
    model = Model(dtype=torch.float16, dropout=0.1)
    sizes: dict[str, Any] = {"pipe": 2, "data": 2, "model": 2, "sequence_parallel": True}
    config = topology_config(global_batch_size=8, micro_batch_size=1, **sizes)
    with Topology.connect(config) as topology:
        module, optimizer = build(model, config, topology, {"zero": True})
        loss_function = Loss(model, topology)
        for step in (1, 2, 3):
            batches = whole_rows(model, step, config, topology)
            with ExitStack() as stack:
                if step > 1:  # in the first, stages tell each other the shapes of what they send
                    for name in WAITS:
                        stack.enter_context(mock.patch.object(Tensor, name, refuse(name)))
                    stack.enter_context(mock.patch.object(torch.cuda, "synchronize", refuse("synchronize")))
                loss = module.train_step(batches, loss_function, gradient_scale=optimizer.gradient_scale)
                report = optimizer.step(step, weight=loss.weight)
        numbers = (loss.loss, loss.weight, report.global_grad_norm, report.overflow, report.loss_scale)
        return all(isinstance(number, Tensor) and number.dtype == torch.float64 for number in numbers)


def test_a_training_step_reads_nothing_back_from_the_device() -> None:
    assert run_distributed(train_without_waiting, 8) == [True] * 8


@pytest.mark.parametrize("name", WAITS)
def test_reading_back_would_be_noticed(name: str) -> None:
    tensor = torch.ones(())
    read = {"item": Tensor.item, "tolist": Tensor.tolist, "cpu": Tensor.cpu, "numpy": Tensor.numpy}
    functions: dict[str, Any] = {"__bool__": bool, "__int__": int, "__float__": float, "__index__": range, **read}
    with mock.patch.object(Tensor, name, refuse(name)), pytest.raises(AssertionError, match="the host waited"):
        getattr(tensor, name)() if name in read else functions[name](tensor)
