"""The steady state: how much Python a step costs, and that the host never waits for the device.

Calls of Python functions are counted, not seconds: the same on every machine, and what a GPU that computes a small
micro-batch in microseconds would wait for.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
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

BUDGET_PER_LAYER = 1
"""Python calls of one transformer layer, forward and backward, for one micro-batch."""

BUDGET_PER_MICRO_BATCH = 1
"""Python calls of the engine, embedding, head and loss for one micro-batch."""

BUDGET_PER_STEP = 1
"""Python calls of an optimizer step with two buffers."""

WAITS = ("item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__")


@contextmanager
def counted(calls: Counter[str]) -> Iterator[None]:
    """Count the calls of Python functions, by file and name."""

    def note(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            calls[f"{frame.f_code.co_filename}:{frame.f_code.co_qualname if sys.version_info >= (3, 11) else frame.f_code.co_name}"] += 1

    sys.setprofile(note)
    try:
        yield
    finally:
        sys.setprofile(None)


def whole_rows(model: Model, step: int, config: TopologyConfig, topology: Topology) -> list[MicroBatch]:
    """Return micro-batches without packed documents: building their mask reads the ids, which costs nothing on a CPU."""
    found = []
    for batch in micro_batches(model, step, config, topology):
        inputs = {name: value for name, value in batch.inputs.items() if name != "documents"}
        found.append(MicroBatch(inputs, batch.targets))
    return found


def count_a_step(
    rank: int, world_size: int, layout: dict[str, Any], blocks: int, options: dict[str, Any]
) -> tuple[int, int]:
    """Return the Python calls of the third training step and of its optimizer step."""
    model = Model(blocks=blocks, dtype=torch.float32, tied=False)
    config = topology_config(**{"global_batch_size": 8, "micro_batch_size": 1, **layout})
    with Topology.connect(config) as topology:
        module, optimizer = build(model, config, topology, options)
        loss_function = Loss(model, topology)
        for step in (1, 2, 3):
            batches = whole_rows(model, step, config, topology)
            forward, update = Counter[str](), Counter[str]()
            with counted(forward):
                loss = module.train_step(iter(batches), loss_function, gradient_scale=optimizer.gradient_scale)
            with counted(update):
                optimizer.step(step, weight=loss.weight)
        return forward.total(), update.total()


def calls(layout: dict[str, Any], blocks: int, **options: Any) -> tuple[int, int]:
    world = 1
    for axis in ("pipe", "data", "model"):
        world *= layout.get(axis, 1)
    return run_distributed(count_a_step, world, layout, blocks, options)[0]


@pytest.mark.parametrize("layout", [{}, {"data": 2}, {"model": 2, "sequence_parallel": True}])
def test_x(layout: dict[str, Any]) -> None:
    for mbs in (1, 2):
        for blocks in (2, 4, 12):
            print(layout, mbs, blocks, calls({**layout, "micro_batch_size": mbs}, blocks, zero=True))
