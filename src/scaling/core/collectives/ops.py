"""Every collective call the library makes, in one place; a group of None is an axis of size one and costs nothing.

Naming follows the effect, and each function states what travels. Versions of torch differ in names:
`reduce_scatter_tensor` and `all_gather_into_tensor` became `reduce_scatter_single` and `all_gather_single` in 2.13.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

Group = dist.ProcessGroup | None
Work = dist.Work

_reduce_scatter: Callable[..., Any] = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
_all_gather: Callable[..., Any] = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_MAX = dist.ReduceOp.MAX
_SUM = dist.ReduceOp.SUM


def all_reduce(tensor: Tensor, group: Group, *, maximum: bool = False) -> Tensor:
    """Sum (or take the maximum of) `tensor` over the group, in place. Collective: all ranks of the group."""
    if group is not None:
        dist.all_reduce(tensor, op=_MAX if maximum else _SUM, group=group)
    return tensor


def all_reduce_start(tensor: Tensor, group: Group) -> Work | None:
    """Start summing `tensor` over the group in place; wait on the result before reading it."""
    return None if group is None else dist.all_reduce(tensor, group=group, async_op=True)


def reduce_scatter_start(output: Tensor, tensor: Tensor, group: dist.ProcessGroup) -> Work:
    """Start summing `tensor` over the group, each rank keeping its equal slice of the flat result in `output`."""
    work: Work = _reduce_scatter(output, tensor, group=group, async_op=True)
    return work


def reduce_scatter(output: Tensor, tensor: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Sum `tensor` over the group, each rank keeping its equal slice (along dimension 0) in `output`."""
    _reduce_scatter(output, tensor, group=group)
    return output


def all_gather_start(output: Tensor, tensor: Tensor, group: dist.ProcessGroup) -> Work:
    """Start joining every rank's `tensor` along dimension 0 into `output`."""
    work: Work = _all_gather(output, tensor, group=group, async_op=True)
    return work


def all_gather(output: Tensor, tensor: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Join every rank's `tensor` along dimension 0 into `output`."""
    _all_gather(output, tensor, group=group)
    return output


def broadcast(tensor: Tensor, group: Group, *, source: int) -> Tensor:
    """Overwrite `tensor` on every rank of the group with that of the group's rank `source`."""
    if group is not None:
        dist.broadcast(tensor, group=group, group_src=source)
    return tensor


def send_start(tensor: Tensor, group: Group, *, to: int) -> Work:
    """Start sending `tensor` to the group's rank `to`; the tensor must live until the work is done."""
    work = dist.isend(tensor, group=group, group_dst=to)
    assert work is not None  # None only on ranks outside the group, which never call this
    return work


def receive(tensor: Tensor, group: Group, *, source: int) -> Tensor:
    """Fill `tensor` with the next message from the group's rank `source`."""
    receive_start(tensor, group, source=source).wait()
    return tensor


def receive_start(tensor: Tensor, group: Group, *, source: int) -> Work:
    """Start filling `tensor` with the next message from the group's rank `source`."""
    work = dist.irecv(tensor, group=group, group_src=source)
    assert work is not None
    return work


def gather_slices(tensor: Tensor, group: dist.ProcessGroup, *, dim: int) -> Tensor:
    """Join every rank's equal `tensor` along `dim`. All-gather over the group."""
    parts = group.size()
    tensor = tensor.contiguous()
    joined = torch.empty((parts, *tensor.shape), dtype=tensor.dtype, device=tensor.device)
    all_gather(joined.view(-1), tensor.view(-1), group)
    dim = dim % tensor.dim()
    if dim == 0:
        return joined.flatten(0, 1)
    return joined.movedim(0, dim).flatten(dim, dim + 1)


def scatter_sum(tensor: Tensor, group: dist.ProcessGroup, *, dim: int) -> Tensor:
    """Sum `tensor` over the group and keep this rank's slice of `dim`. Reduce-scatter over the group."""
    parts = group.size()
    dim = dim % tensor.dim()
    by_rank = tensor.unflatten(dim, (parts, tensor.shape[dim] // parts)).movedim(dim, 0).contiguous()
    output = torch.empty(by_rank.shape[1:], dtype=tensor.dtype, device=tensor.device)
    reduce_scatter(output.view(-1), by_rank.view(-1), group)
    return output
