"""The cut of parameters that are added to a linear layer, so that it fits the layer's own cut."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from typing_extensions import Self

from scaling.core.errors import LayoutError
from scaling.core.nn.linear import ColumnParallelLinear, RowParallelLinear
from scaling.core.nn.parameter import Initializer, new_parameter
from scaling.core.nn.place import Place
from scaling.core.nn.shard import Shard

ParallelLinear = ColumnParallelLinear | RowParallelLinear


def added_dtype(place: Place) -> torch.dtype:
    """Return the type of trained parameters that are added to a layer: at least float32."""
    return torch.promote_types(place.dtype, torch.float32)


@dataclass(frozen=True)
class Cut:
    """The matrix [out_features, in_features] of a linear layer, or of one output of a fused one, and this rank's part.

    Either the rows or the columns are cut; both are whole where the model axis has one rank.
    """

    out_features: int
    in_features: int
    rows: Shard | None
    """The cut of the rows, in a column-parallel layer."""
    columns: Shard | None
    """The cut of the columns, in a row-parallel layer."""
    span: slice
    """The rows in the local weight, and the features in the local output."""

    @classmethod
    def of(cls, layer: ParallelLinear, output: str = "") -> Self:
        """Return the cut of a layer, or of the `output` of a fused layer. `LayoutError` if there is no such output."""
        if isinstance(layer, RowParallelLinear):
            return cls(layer.out_features, layer.in_features, None, layer.inputs, slice(0, layer.out_features))
        if output not in layer.outputs:
            raise LayoutError(f"the layer has no output {output!r}; it has {', '.join(map(repr, layer.outputs))}")
        first = sum(layer.output_sizes[: list(layer.outputs).index(output)])
        features, shard = layer.outputs[output]
        return cls(features, layer.in_features, shard, None, slice(first, first + shard.length))

    @property
    def joins_sum(self) -> bool:
        """Return whether the layer's output is a sum over the model axis, of which each rank computes one term."""
        return self.columns is not None

    def of_inputs(self, others: int, initializer: Initializer, place: Place) -> nn.Parameter:
        """Return a new parameter [others, in_features], cut like the layer's inputs.

        Where the inputs are whole, each rank has the part of the gradient that comes from its own outputs.
        """
        return new_parameter(
            (others, self.in_features),
            initializer,
            shard=self.columns,
            dtype=added_dtype(place),
            gradient_in_parts=self.columns is None,
        )

    def of_outputs(self, others: tuple[int, ...], initializer: Initializer, place: Place) -> nn.Parameter:
        """Return a new parameter [out_features, *others] for the layer's term, cut like the layer's outputs.

        Each rank has a part of the gradient where its output is one term of a sum, or where ranks share rows.
        """
        return new_parameter(
            (self.out_features, *others),
            initializer,
            shard=self.rows,
            dtype=added_dtype(place),
            gradient_in_parts=self.joins_sum or (self.rows is not None and self.rows.replicas > 1),
        )

    def replaced(self, y: Tensor, part: Tensor) -> Tensor:
        """Return `y` [..., local outputs of the layer] with this output's features replaced by `part`."""
        if part.shape[-1] == y.shape[-1]:
            return part
        return torch.cat([y[..., : self.span.start], part, y[..., self.span.stop :]], dim=-1)
