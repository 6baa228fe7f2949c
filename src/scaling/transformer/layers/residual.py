"""What stands between the parts: a branch is added to the residual stream, activations are multiplied by a constant."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from scaling.core import Dropout


@final
class Residual(nn.Module):
    """x + scale * dropout(branch)."""

    def __init__(self, dropout: Dropout, *, scale: float = 1.0) -> None:
        super().__init__()
        self.dropout = dropout
        self.scale = scale

    def forward(self, x: Tensor, branch: Tensor, samples: Tensor) -> Tensor:
        """Return the sum, shaped as both; `samples` int64 [b] as `Dropout` takes them."""
        branch = self.dropout(branch, samples)
        return x + branch if self.scale == 1.0 else x + self.scale * branch


@final
class Scale(nn.Module):
    """factor * x, the factor rounded to the type of x, as the models were trained that have one (Gemma)."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor
        self._rounded: dict[torch.dtype, float] = {}

    def forward(self, x: Tensor) -> Tensor:
        """Return the product."""
        if x.dtype not in self._rounded:
            self._rounded[x.dtype] = float(torch.tensor(self.factor, dtype=x.dtype))
        return x * self._rounded[x.dtype]
