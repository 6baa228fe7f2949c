"""Feed-forward blocks: a column-parallel layer in, a row-parallel layer out, one sum over the model axis."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias, cast, final

import torch
import torch.nn.functional as F
from torch import Tensor

from scaling.core.nn.joined import JoinedLayers, Joins
from scaling.core.nn.linear import ColumnParallelLinear, RowParallelLinear, project_all
from scaling.core.nn.place import enter_model_parallel

Activation: TypeAlias = Callable[[Tensor], Tensor]


@final
class ParallelMLP(Joins):
    """activation(x W_in) W_out. Communicates: one all-reduce forward and one backward (or sequence-parallel halves)."""

    def __init__(
        self, dense_in: ColumnParallelLinear, dense_out: RowParallelLinear, *, activation: Activation = F.gelu
    ) -> None:
        super().__init__()
        self.dense_in = dense_in
        self.dense_out = dense_out
        self.activation = activation

    def join(self) -> None:
        """Store the weight of `dense_in` in the order in which it is read fastest."""
        self.joined = JoinedLayers([self.dense_in])

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, shaped as its input [b, s, features]."""
        entered = enter_model_parallel(x, self.dense_in.place)
        # nn.Module.__call__ returns Any
        return self.dense_out(self.activation(self.dense_in(entered, entered=True)))  # type: ignore[no-any-return]


@final
class ParallelSwiGLUMLP(Joins):
    """(activation(x W_in) * x W_gate) W_out (Shazeer, arXiv:2002.05202). Communicates as `ParallelMLP`.

    `ways_in` has `dense_in`, the factor inside the activation, and `siglu_weight`, the linear factor (the predecessor's
    names in checkpoints), or one fused layer of any name with both outputs in this order.
    """

    def __init__(
        self,
        ways_in: Mapping[str, ColumnParallelLinear],
        dense_out: RowParallelLinear,
        *,
        activation: Activation = F.silu,
    ) -> None:
        super().__init__()
        for name, layer in ways_in.items():
            self.add_module(name, layer)
        self._ways_in = tuple(ways_in)
        self.dense_out = dense_out
        self.activation = activation

    def join(self) -> None:
        """Compute both factors with one matrix product, where no gradient is wanted."""
        self.joined = JoinedLayers([cast(ColumnParallelLinear, self._modules[name]) for name in self._ways_in])

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, shaped as its input [b, s, features]."""
        entered = enter_model_parallel(x, self.dense_out.place)
        together = None if self.joined is None else self.joined(entered)
        if self.joined is None or together is None:
            gate, linear = project_all(self, self._ways_in, entered)
        else:
            gate, linear = together.split_with_sizes(self.joined.sizes, dim=-1)
        if not torch.is_grad_enabled():  # in place, without memory for the product
            return self.dense_out(self.activation(gate).mul_(linear))  # type: ignore[no-any-return]  # as above
        return self.dense_out(self.activation(gate) * linear)  # type: ignore[no-any-return]  # as above
