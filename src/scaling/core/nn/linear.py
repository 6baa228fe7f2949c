"""Linear layers cut over the model axis: by output features (column) or by input features (row).

Shape suffixes: B leading dimensions, I input features, O output features, o and i the local parts of them.
"""

from __future__ import annotations

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scaling.core.collectives.autograd import (
    copy_to_model,
    gather_features,
    gather_sequence,
    reduce_from_model,
    scatter_sequence,
    split_features,
)
from scaling.core.nn.init import Constant, initialize, xavier_normal
from scaling.core.nn.parameter import DescribedParameter, Initializer, ParameterMeta, Shard, annotate, even_shard
from scaling.core.topology.layout import Axis
from scaling.core.topology.topology import Topology

_HALF = (torch.bfloat16, torch.float16)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply as `torch.nn.functional.linear`; half precision on a CPU is multiplied in float32 and rounded once.

    CPUs without AMX or AVX512-BF16 take 20 to 80 times longer for a half-precision product than for the same in
    float32; the rounding of operands and result is that of the half-precision product either way.
    """
    if x.device.type == "cpu" and x.dtype in _HALF:
        return F.linear(x.float(), weight.float(), None if bias is None else bias.float()).to(x.dtype)
    return F.linear(x, weight, bias)


def new_parameter(
    shape: tuple[int, ...],
    initializer: Initializer,
    *,
    shard: Shard | None = None,
    dtype: torch.dtype = torch.float32,
    sum_grad_over_model: bool = False,
) -> nn.Parameter:
    """Return this rank's part of a parameter of global `shape`, described and filled.

    The values are those of an unnamed tensor under seed 0, so that a layer works on its own; a pipeline stage fills
    them anew when the parameter's name and the run's seed are known.
    """
    local = list(shape)
    if shard is not None:
        local[shard.dim] = shard.local_length
    parameter = DescribedParameter(torch.empty(local, dtype=dtype))
    annotate(
        parameter,
        ParameterMeta(
            global_shape=shape, shard=shard, initializer=initializer, sum_grad_over_model=sum_grad_over_model
        ),
    )
    initialize(parameter, seed=0)
    return parameter


def enter_model_parallel(x: Tensor, topology: Topology, *, sequence_parallel: bool) -> Tensor:
    """Hand an activation to sharded computation: gather its sequence slices, or use the replicated tensor as it is.

    Several column-parallel layers that share an input call this once and are built with `copy_input=False`, so that
    their input gradients are summed over the model axis in one message instead of one each.
    """
    group = topology.group(Axis.MODEL)
    return gather_sequence(x, group) if sequence_parallel else copy_to_model(x, group)


def leave_model_parallel(partial: Tensor, topology: Topology, *, sequence_parallel: bool) -> Tensor:
    """Sum partial results over the model axis; under sequence parallelism each rank keeps its slice of the sequence."""
    group = topology.group(Axis.MODEL)
    return scatter_sequence(partial, group) if sequence_parallel else reduce_from_model(partial, group)


@final
class ColumnParallelLinear(nn.Module):
    """y_Bo = x_BI W_oI^T + b_o: each model rank computes its part of the output features.

    Input: [..., in_features], alike on all model ranks. Output: [..., out_features / model_parallel_size], or all
    features with `gather_output`. Communicates: all-reduce of the input gradient (unless `copy_input` is False),
    all-gather of the output with `gather_output`. Source: Megatron-LM, arXiv:1909.08053, section 3.

    `shard` overrides the even cut (shared key-value heads). `LayoutError` if out_features is not divisible.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        topology: Topology | None = None,
        bias: bool = True,
        dtype: torch.dtype = torch.float32,
        initializer: Initializer | None = None,
        shard: Shard | None = None,
        copy_input: bool = True,
        gather_output: bool = False,
    ) -> None:
        super().__init__()
        self.topology = topology or Topology.single()
        self.copy_input = copy_input
        self.gather_output = gather_output
        if shard is None:
            parts, index = self.topology.size(Axis.MODEL), self.topology.index(Axis.MODEL)
            shard = even_shard(out_features, parts, index, dim=0, what="out_features of ColumnParallelLinear")
        shared = shard.replicas > 1
        self.weight = new_parameter(
            (out_features, in_features),
            initializer or xavier_normal(in_features, out_features),
            shard=shard,
            dtype=dtype,
            sum_grad_over_model=shared,
        )
        self.bias = (
            new_parameter((out_features,), Constant(0.0), shard=shard, dtype=dtype, sum_grad_over_model=shared)
            if bias
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the local output features (all of them with `gather_output`)."""
        group = self.topology.group(Axis.MODEL)
        if self.copy_input:
            x = copy_to_model(x, group)
        y = linear(x, self.weight, self.bias)
        return gather_features(y, group) if self.gather_output else y


@final
class RowParallelLinear(nn.Module):
    """y_BO = sum over model ranks of x_Bi W_Oi^T, + b_O: each model rank holds a part of the input features.

    Input: [..., in_features / model_parallel_size] as a column-parallel layer leaves it (or all features, alike on all
    ranks, with `split_input`). Output: [..., out_features] on all model ranks; with `sequence_parallel` [b, s, h]
    becomes [b, s / model_parallel_size, h]. The bias is added once, after the sum. Communicates: one all-reduce (or
    reduce-scatter) of the output.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        topology: Topology | None = None,
        bias: bool = True,
        dtype: torch.dtype = torch.float32,
        initializer: Initializer | None = None,
        split_input: bool = False,
        sequence_parallel: bool = False,
    ) -> None:
        super().__init__()
        self.topology = topology or Topology.single()
        self.split_input = split_input
        self.sequence_parallel = sequence_parallel
        parts, index = self.topology.size(Axis.MODEL), self.topology.index(Axis.MODEL)
        self.weight = new_parameter(
            (out_features, in_features),
            initializer or xavier_normal(in_features, out_features),
            shard=even_shard(in_features, parts, index, dim=1, what="in_features of RowParallelLinear"),
            dtype=dtype,
        )
        self.bias = (
            new_parameter((out_features,), Constant(0.0), dtype=dtype, sum_grad_over_model=sequence_parallel)
            if bias
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the whole output features, summed over the model axis."""
        if self.split_input:
            x = split_features(x, self.topology.group(Axis.MODEL))
        if self.topology.group(Axis.MODEL) is None:
            return linear(x, self.weight, self.bias)
        y = leave_model_parallel(linear(x, self.weight), self.topology, sequence_parallel=self.sequence_parallel)
        return y if self.bias is None else y + self.bias
