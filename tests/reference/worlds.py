"""Topologies for tests: one process of a gloo world, or any rank's view without a process group."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from scaling.core.topology.config import TopologyConfig
from scaling.core.topology.layout import Axis, Layout
from scaling.core.topology.topology import Topology

# As in the workers, whose results are compared with those of this process; a second thread gains nothing here.
torch.set_num_threads(1)


def topology_config(*, pipe: int = 1, data: int = 1, model: int = 1, **others: Any) -> TopologyConfig:
    """Return a configuration on the CPU; every missing number is 1."""
    sizes = {"pipe_parallel_size": pipe, "data_parallel_size": data, "model_parallel_size": model}
    batch = {"micro_batch_size": 1, "gradient_accumulation_steps": 1} if "global_batch_size" not in others else {}
    return TopologyConfig.from_dict(
        {"device": "cpu", "process_group_timeout_seconds": 60.0, **sizes, **batch, **others}
    )


@contextmanager
def connected(*, pipe: int = 1, data: int = 1, model: int = 1, **others: Any) -> Iterator[Topology]:
    """Join the world that the environment describes. Collective: all ranks."""
    with Topology.connect(topology_config(pipe=pipe, data=data, model=model, **others)) as topology:
        yield topology


def model_group(topology: Topology) -> dist.ProcessGroup:
    """Return the model axis' group of a topology that has one."""
    group = topology.group(Axis.MODEL)
    assert group is not None
    return group


def view_of(rank: int, *, sequence_parallel: bool = False, **sizes: int) -> Topology:
    """Return rank `rank`'s view of a layout, without a process group: for what communicates nothing."""
    return Topology(Layout(**sizes), rank, torch.device("cpu"), sequence_parallel=sequence_parallel)


def joined(tensor: Tensor, group: dist.ProcessGroup | None, dim: int) -> Tensor:
    """Return the tensors of all ranks of the group, joined along `dim`: slow and obvious."""
    if group is None:
        return tensor.detach().clone()
    parts = [torch.empty_like(tensor) for _ in range(group.size())]
    dist.all_gather(parts, tensor.detach().contiguous(), group=group)
    return torch.cat(parts, dim=dim)


def random(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return normal values, the same on every rank."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
