"""Begin a backward pass with given gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class _Begin(torch.autograd.Function):
    """A scalar that, whatever its own gradient, hands the given gradients to the tensors that it is made of."""

    @staticmethod
    def forward(ctx: Any, gradients: Sequence[Tensor], *outputs: Tensor) -> Tensor:
        ctx.gradients = gradients
        return outputs[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor | None, ...]:
        return None, *ctx.gradients


def backward(outputs: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
    """Differentiate tensors that need a gradient, each given one of its shape; add to the gradients of leaves.

    The numbers are those of `torch.autograd.backward`. That function compares shapes symbolically, and its first call
    imports SymPy for this, which takes more than a second.
    """
    if len(outputs) == 1 and outputs[0].ndim == 0:
        torch.autograd.backward(outputs[0] * gradients[0])  # a loss: its gradient is 1 times the given one
    elif outputs:
        torch.autograd.backward(_Begin.apply(gradients, *outputs))  # type: ignore[no-untyped-call]  # no types
