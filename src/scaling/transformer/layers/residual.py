"""What stands between the parts: a branch is added to the residual stream, activations are multiplied by a constant."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from scaling.core import Dropout, Edit


@final
class Residual(nn.Module):
    """x + scale * dropout(branch), and what stands behind that sum."""

    def __init__(self, dropout: Dropout, *, scale: float = 1.0) -> None:
        super().__init__()
        self.dropout = dropout
        self.scale = scale
        self._behind: tuple[Edit, ...] = ()

    def put_behind(self, name: str, edit: Edit) -> None:
        """Let the sum go through an edit, behind those before it; its parameters are named `name.` within this."""
        self.add_module(name, edit)
        self._behind = (*self._behind, edit)

    def forward(self, x: Tensor, branch: Tensor, samples: Tensor) -> Tensor:
        """Return activations, shaped as both; `samples` int64 [b] as `Dropout` takes them."""
        if self.dropout.active:
            branch = self.dropout(branch, samples)
        x = x + branch if self.scale == 1.0 else x + self.scale * branch
        for edit in self._behind:
            if edit.active:
                x = edit(x)
        return x


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
