"""Bottleneck adapters: a small network with a residual connection, after a branch (arXiv:1902.00751)."""

from __future__ import annotations

from typing import final

import torch.nn.functional as F
from torch import Tensor, nn

from scaling.core.finetuning.cut import added_dtype
from scaling.core.nn.edit import Edit
from scaling.core.nn.init import Normal
from scaling.core.nn.linear import linear
from scaling.core.nn.parameter import new_parameter
from scaling.core.nn.place import Place


@final
class Projection(nn.Module):
    """A matrix that every rank holds whole."""

    def __init__(self, in_features: int, out_features: int, *, std: float, place: Place) -> None:
        super().__init__()
        self.weight = new_parameter(
            (out_features, in_features),
            Normal(std),
            dtype=added_dtype(place),
            gradient_in_parts=place.sequence_parallel,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return x weight^T."""
        return linear(x, self.weight)


@final
class Bottleneck(Edit):
    """x + gelu(x W_in^T) W_out^T, on activations between layers. Communicates nothing.

    Every rank computes the whole adapter; under sequence parallelism only for its slice of the sequence, so that it
    has a part of the gradient. In a half-precision model the adapter computes in float32.
    """

    def __init__(self, features: int, width: int, *, std: float, place: Place) -> None:
        super().__init__()
        self.dense_in = Projection(features, width, std=std, place=place)
        self.dense_out = Projection(width, features, std=std, place=place)

    def forward(self, x: Tensor) -> Tensor:
        """Return activations of the shape [b, s, features] and the type of `x`."""
        inner = F.gelu(self.dense_in(x.to(self.dense_in.weight.dtype)))
        y: Tensor = x + self.dense_out(inner)
        return y.to(x.dtype)
