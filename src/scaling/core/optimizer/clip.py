"""The global gradient norm on the device, every parameter counted once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from scaling.core.collectives import ops
from scaling.core.topology.topology import Topology


def squared_norm(counted: Sequence[Tensor], topology: Topology) -> Tensor:
    """Return the sum of squares of all elements of all ranks, 0-d float64. Collective: all ranks; one number."""
    if counted:
        norms = torch.stack([torch.linalg.vector_norm(tensor) for tensor in counted])
        total = norms.to(torch.float64).square().sum()
    else:
        total = torch.zeros((), dtype=torch.float64, device=topology.device)
    return ops.all_reduce(total, topology.world)
