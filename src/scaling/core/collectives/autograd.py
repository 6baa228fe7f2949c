"""Differentiable collectives of tensor parallelism, each with the conjugate in its backward pass.

With x the whole tensor and x_r the slice of rank r (Megatron-LM, arXiv:1909.08053 section 3; sequence parallelism:
arXiv:2205.05198 section 4.2.2):

    function            forward                 backward
    copy_to_model       identity                all-reduce of the gradient      (f)
    reduce_from_model   all-reduce              identity                        (g)
    gather_sequence     all-gather of slices    reduce-scatter of the gradient  (g bar, reversed)
    scatter_sequence    reduce-scatter          all-gather of the gradient      (g bar)
    gather_features     all-gather of slices    own slice of the gradient
    split_features      own slice               all-gather of the gradient

Half-precision sums over ranks run in float32 where gloo would otherwise add in half precision.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from scaling.core.collectives import ops
from scaling.core.collectives.ops import Group


def _wide(tensor: Tensor) -> Tensor:
    # gloo adds bfloat16 in bfloat16 (1 + 2^-9 = 1); NCCL accumulates the pairwise sums of a ring in float32 per hop.
    return tensor.float() if tensor.device.type == "cpu" and tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def _sum(tensor: Tensor, group: Group) -> Tensor:
    wide = _wide(tensor)
    summed = ops.all_reduce(wide.clone(memory_format=torch.contiguous_format) if wide is tensor else wide, group)
    return summed.to(tensor.dtype)


def _scatter_sum(tensor: Tensor, group: Group, dim: int) -> Tensor:
    assert group is not None
    return ops.scatter_sum(_wide(tensor), group, dim=dim).to(tensor.dtype)


def _own_slice(tensor: Tensor, group: Group, dim: int) -> Tensor:
    assert group is not None
    return tensor.chunk(group.size(), dim=dim)[group.rank()].contiguous()


def _gather(tensor: Tensor, group: Group, dim: int) -> Tensor:
    assert group is not None
    return ops.gather_slices(tensor, group, dim=dim)


class _Copy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _sum(grad, ctx.group), None


class _Reduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, group: Group) -> Tensor:
        return _sum(x, group)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _GatherSequence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group, dim: int) -> Tensor:
        ctx.group, ctx.dim = group, dim
        return _gather(x, group, dim)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _scatter_sum(grad, ctx.group, ctx.dim), None, None


class _ScatterSequence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group, dim: int) -> Tensor:
        ctx.group, ctx.dim = group, dim
        return _scatter_sum(x, group, dim)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _gather(grad, ctx.group, ctx.dim), None, None


class _GatherFeatures(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group, dim: int) -> Tensor:
        ctx.group, ctx.dim = group, dim
        return _gather(x, group, dim)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _own_slice(grad, ctx.group, ctx.dim), None, None


class _SplitFeatures(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group, dim: int) -> Tensor:
        ctx.group, ctx.dim = group, dim
        return _own_slice(x, group, dim)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _gather(grad, ctx.group, ctx.dim), None, None


def _apply(function: type[torch.autograd.Function], *arguments: Any) -> Tensor:
    return cast(Tensor, function.apply(*arguments))


def copy_to_model(x: Tensor, group: Group) -> Tensor:
    """Use a replicated tensor in sharded computation. Backward: all-reduce of the gradient over the group."""
    return x if group is None else _apply(_Copy, x, group)


def reduce_from_model(x: Tensor, group: Group) -> Tensor:
    """Sum partial results over the group. Forward: all-reduce."""
    return x if group is None else _apply(_Reduce, x, group)


def gather_sequence(x: Tensor, group: Group, *, dim: int = 1) -> Tensor:
    """Join sequence slices for sharded computation. Forward: all-gather; backward: reduce-scatter."""
    return x if group is None else _apply(_GatherSequence, x, group, dim)


def scatter_sequence(x: Tensor, group: Group, *, dim: int = 1) -> Tensor:
    """Sum partial results and keep this rank's sequence slice. Forward: reduce-scatter; backward: all-gather."""
    return x if group is None else _apply(_ScatterSequence, x, group, dim)


def gather_features(x: Tensor, group: Group, *, dim: int = -1) -> Tensor:
    """Join slices into a tensor that every rank then uses in the same way. Forward: all-gather; backward: own slice."""
    return x if group is None else _apply(_GatherFeatures, x, group, dim)


def split_features(x: Tensor, group: Group, *, dim: int = -1) -> Tensor:
    """Keep this rank's slice of a tensor that is the same on every rank. Forward: own slice; backward: all-gather."""
    return x if group is None else _apply(_SplitFeatures, x, group, dim)
