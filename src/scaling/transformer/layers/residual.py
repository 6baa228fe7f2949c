"""The steps between the parts: a branch is added to the residual stream, activations are multiplied by a constant."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from scaling.core import Dropout, Edit


@final
class Residual(nn.Module):
    """x + scale * dropout(branch), followed by edits of this sum."""

    def __init__(self, dropout: Dropout, *, scale: float = 1.0) -> None:
        super().__init__()
        self.dropout = dropout
        self.scale = scale
        self._behind: tuple[Edit, ...] = ()

    def put_behind(self, name: str, edit: Edit) -> None:
        """Add an edit of the sum, after the earlier ones; its parameters are named `name.` within this module."""
        self.add_module(name, edit)
        self._behind = (*self._behind, edit)

    def forward(self, x: Tensor, branch: Tensor, samples: Tensor) -> Tensor:
        """Return activations, shaped as both inputs; `samples` int64 [b] as for `Dropout`."""
        if self.dropout.active:
            branch = self.dropout(branch, samples)
        x = x + branch if self.scale == 1.0 else x + self.scale * branch
        for edit in self._behind:
            if edit.active:
                x = edit(x)
        return x


@final
class Scale(nn.Module):
    """factor * x, with the factor rounded to the type of x, as models with such a factor were trained (Gemma)."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor
        self._rounded: dict[torch.dtype, float] = {}

    def forward(self, x: Tensor) -> Tensor:
        """Return the product."""
        if x.dtype not in self._rounded:
            self._rounded[x.dtype] = float(torch.tensor(self.factor, dtype=x.dtype))
        return x * self._rounded[x.dtype]
