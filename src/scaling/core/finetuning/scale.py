"""IA3 (arXiv:2205.05638): the outputs or inputs of a linear layer times a learned vector."""

from __future__ import annotations

from dataclasses import replace
from typing import final

import torch
from torch import Tensor

from scaling.core.finetuning.cut import Cut, ParallelLinear, added_dtype
from scaling.core.nn.init import Constant
from scaling.core.nn.linear import LinearEdit
from scaling.core.nn.parameter import new_parameter


@final
class OutputScale(LinearEdit):
    """The output, its bias included, times a vector that starts at 1. Communicates nothing.

    In a column-parallel layer the vector is cut like the output; after the sum of a row-parallel layer it is whole, and
    under sequence parallelism each rank has a part of its gradient.
    """

    def __init__(self, layer: ParallelLinear, *, output: str = "") -> None:
        super().__init__()
        self.cut = cut = Cut.of(layer, output)
        self.scale = new_parameter(
            (cut.out_features,),
            Constant(1.0),
            shard=cut.rows,
            dtype=added_dtype(layer.place),
            gradient_in_parts=(layer.place.sequence_parallel if cut.rows is None else cut.rows.replicas > 1),
        )

    def after(self, y: Tensor) -> Tensor:
        """Return the scaled output, in the type of `y`."""
        return self.cut.replaced(y, (y[..., self.cut.span] * self.scale).to(y.dtype))

    @torch.no_grad()
    def merged(self, values: Tensor) -> Tensor:
        """Return this rank's part of the scaled matrix, or bias, in the type of the vector."""
        return values * (self.scale if values.dim() == 1 else self.scale.unsqueeze(-1))


@final
class InputScale(LinearEdit):
    """The input times a vector that starts at 1. Communicates nothing.

    Before a row-parallel layer the vector is cut like the input; before a column-parallel layer it is whole, and each
    rank has the part of the gradient that comes from its own outputs.
    """

    def __init__(self, layer: ParallelLinear) -> None:
        super().__init__()
        cut = Cut.of(layer)
        self.scale = new_parameter(
            (cut.in_features,),
            Constant(1.0),
            shard=None if cut.columns is None else replace(cut.columns, dim=0),
            dtype=added_dtype(layer.place),
            gradient_in_parts=cut.columns is None,
        )

    def before(self, x: Tensor) -> Tensor:
        """Return the scaled input, in the type of `x`."""
        return (x * self.scale).to(x.dtype)

    @torch.no_grad()
    def merged(self, values: Tensor) -> Tensor:
        """Return this rank's part of the scaled matrix, in the type of the vector; a bias stays unchanged."""
        return values if values.dim() == 1 else values * self.scale
