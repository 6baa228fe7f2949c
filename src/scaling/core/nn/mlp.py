"""Feed-forward blocks: a column-parallel way in, a row-parallel way out, one sum over the model axis."""

from __future__ import annotations

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scaling.core.nn.linear import ColumnParallelLinear, RowParallelLinear, enter_model_parallel
from scaling.core.nn.parameter import Initializer
from scaling.core.topology.topology import Topology


@final
class ParallelMLP(nn.Module):
    """GELU(x W_in) W_out. Communicates: one all-reduce forward and one backward (or their sequence-parallel halves)."""

    def __init__(
        self,
        features: int,
        intermediate_features: int,
        *,
        topology: Topology | None = None,
        bias: bool = True,
        dtype: torch.dtype = torch.float32,
        initializer: Initializer | None = None,
        sequence_parallel: bool = False,
    ) -> None:
        super().__init__()
        self.topology = topology or Topology.single()
        self.sequence_parallel = sequence_parallel
        self.dense_in = ColumnParallelLinear(
            features,
            intermediate_features,
            topology=self.topology,
            bias=bias,
            dtype=dtype,
            initializer=initializer,
            copy_input=False,
        )
        self.dense_out = RowParallelLinear(
            intermediate_features,
            features,
            topology=self.topology,
            bias=bias,
            dtype=dtype,
            initializer=initializer,
            sequence_parallel=sequence_parallel,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, shaped as its input [b, s, features]."""
        x = enter_model_parallel(x, self.topology, sequence_parallel=self.sequence_parallel)
        return self.dense_out(F.gelu(self.dense_in(x)))  # type: ignore[no-any-return]  # nn.Module.__call__ is Any


@final
class ParallelSwiGLUMLP(nn.Module):
    """(SiLU(x W_in) * x W_gate) W_out (Shazeer, arXiv:2002.05202). Communicates as `ParallelMLP`.

    `siglu_weight` is the linear factor and `dense_in` the one inside SiLU, the predecessor's names in checkpoints.
    """

    def __init__(
        self,
        features: int,
        intermediate_features: int,
        *,
        topology: Topology | None = None,
        bias: bool = True,
        dtype: torch.dtype = torch.float32,
        initializer: Initializer | None = None,
        sequence_parallel: bool = False,
    ) -> None:
        super().__init__()
        self.topology = topology or Topology.single()
        self.sequence_parallel = sequence_parallel

        def way_in() -> ColumnParallelLinear:
            return ColumnParallelLinear(
                features,
                intermediate_features,
                topology=self.topology,
                bias=bias,
                dtype=dtype,
                initializer=initializer,
                copy_input=False,
            )

        self.dense_in = way_in()
        self.siglu_weight = way_in()
        self.dense_out = RowParallelLinear(
            intermediate_features,
            features,
            topology=self.topology,
            bias=bias,
            dtype=dtype,
            initializer=initializer,
            sequence_parallel=sequence_parallel,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, shaped as its input [b, s, features]."""
        x = enter_model_parallel(x, self.topology, sequence_parallel=self.sequence_parallel)
        return self.dense_out(F.silu(self.dense_in(x)) * self.siglu_weight(x))  # type: ignore[no-any-return]  # as above
