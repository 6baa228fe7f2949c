"""Comparisons with a stated tolerance, and backward passes that mypy knows the type of."""

from __future__ import annotations

import torch
from torch import Tensor


def close(actual: Tensor, expected: Tensor, what: str = "", *, tolerance: float = 1e-12) -> None:
    """Assert that two tensors agree to `tolerance` relative to the largest expected element (at least 1)."""
    assert actual.shape == expected.shape, f"{what}: {list(actual.shape)} instead of {list(expected.shape)}"
    if expected.numel():
        actual, expected = actual.detach().double(), expected.detach().double()
        worst = (actual - expected).abs().max() / expected.abs().max().clamp_min(1.0)
        assert worst <= tolerance, f"{what}: off by {float(worst):.2e}"  # a NaN is not <= anything


def backward(output: Tensor, gradient: Tensor | None = None) -> None:
    """Differentiate `output`, weighted by `gradient`."""
    torch.autograd.backward(output, gradient)


def gradient_of(tensor: Tensor) -> Tensor:
    """Return the gradient a backward pass left."""
    assert tensor.grad is not None
    return tensor.grad
