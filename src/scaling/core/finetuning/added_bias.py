"""A bias for a linear layer that has none, to be trained alone (BitFit, arXiv:2106.10199)."""

from __future__ import annotations

from typing import final

from torch import Tensor

from scaling.core.finetuning.cut import Cut, ParallelLinear
from scaling.core.nn.init import Constant
from scaling.core.nn.linear import LinearEdit


@final
class AddedBias(LinearEdit):
    """The product plus a vector that starts at 0. Communicates nothing.

    In a column-parallel layer the vector is cut like the output; in a row-parallel layer, whose outputs are summed over
    the model axis, each rank adds its share.
    """

    def __init__(self, layer: ParallelLinear, *, output: str = "") -> None:
        super().__init__()
        self.cut = cut = Cut.of(layer, output)
        self.bias = cut.of_outputs((), Constant(0.0), layer.place)
        self._terms = layer.place.parts if cut.joins_sum else 1

    def within(self, y: Tensor, x: Tensor) -> Tensor:
        """Return the product with this rank's share of the bias, in the type of `y`."""
        return self.cut.replaced(y, (y[..., self.cut.span] + self.bias / self._terms).to(y.dtype))
