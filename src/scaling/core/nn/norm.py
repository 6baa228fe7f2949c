"""LayerNorm and RMSNorm, alike on all model ranks; under sequence parallelism their gradients are summed over them."""

from __future__ import annotations

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scaling.core.nn.init import Constant
from scaling.core.nn.linear import new_parameter


@final
class LayerNorm(nn.Module):
    """Normalise the last dimension to mean 0 and variance 1, then scale and shift (Ba et al., arXiv:1607.06450).

    With `sequence_parallel` the input is a slice of the sequence, so each model rank sees a part of the gradient.
    """

    def __init__(
        self,
        features: int,
        *,
        epsilon: float = 1e-5,
        dtype: torch.dtype = torch.float32,
        sequence_parallel: bool = False,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.weight = new_parameter((features,), Constant(1.0), dtype=dtype, sum_grad_over_model=sequence_parallel)
        self.bias = (
            new_parameter((features,), Constant(0.0), dtype=dtype, sum_grad_over_model=sequence_parallel)
            if bias
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised tensor; statistics are taken in float32 for half precision."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.epsilon)


@final
class RMSNorm(nn.Module):
    """Divide the last dimension by its root mean square, then scale (Zhang and Sennrich, arXiv:1910.07467).

    With `sequence_parallel` the input is a slice of the sequence, so each model rank sees a part of the gradient.
    """

    def __init__(
        self,
        features: int,
        *,
        epsilon: float = 1e-5,
        dtype: torch.dtype = torch.float32,
        sequence_parallel: bool = False,
    ) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.weight = new_parameter((features,), Constant(1.0), dtype=dtype, sum_grad_over_model=sequence_parallel)

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised tensor; statistics are taken in float32 for half precision."""
        return F.rms_norm(x, self.weight.shape, self.weight, self.epsilon)
