"""Slow, obvious, single-process mathematics of the layers, on whole weights."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Weights = dict[str, Tensor]


def affine(weights: Weights, name: str, x: Tensor) -> Tensor:
    """Return x W^T + b for `name.weight` and, where there is one, `name.bias`."""
    y = torch.einsum("...i,oi->...o", x, weights[f"{name}.weight"])
    bias = weights.get(f"{name}.bias")
    return y if bias is None else y + bias


def rms_norm(x: Tensor, weight: Tensor, epsilon: float = 1e-5) -> Tensor:
    """Return x over its root mean square along the last dimension."""
    return x / (x.square().mean(-1, keepdim=True) + epsilon).sqrt() * weight


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, epsilon: float = 1e-5) -> Tensor:
    """Return x with mean 0 and variance 1 along the last dimension."""
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + epsilon).sqrt() * weight
    return scaled if bias is None else scaled + bias


def gelu(x: Tensor) -> Tensor:
    """Return x times the normal distribution function."""
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def mlp(weights: Weights, x: Tensor) -> Tensor:
    """Return the plain feed-forward block."""
    return affine(weights, "dense_out", gelu(affine(weights, "dense_in", x)))


def swiglu(weights: Weights, x: Tensor) -> Tensor:
    """Return the gated feed-forward block."""
    inside = affine(weights, "dense_in", x)
    return affine(weights, "dense_out", inside / (1 + (-inside).exp()) * affine(weights, "siglu_weight", x))


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return -log of the target's probability, per position."""
    probabilities = (logits - logits.amax(-1, keepdim=True)).exp()
    probabilities = probabilities / probabilities.sum(-1, keepdim=True)
    return -probabilities.gather(-1, targets.unsqueeze(-1)).squeeze(-1).log()


def rotate(
    x: Tensor, positions: Tensor, dimensions: int, *, base: float = 10000.0, interleaved: bool = False
) -> Tensor:
    """Turn pairs of features of x [b, s, h, d], as complex numbers, by positions [b, s]."""
    turned, passed = x[..., :dimensions], x[..., dimensions:]
    if interleaved:
        real, imaginary = turned[..., 0::2], turned[..., 1::2]
    else:
        real, imaginary = turned[..., : dimensions // 2], turned[..., dimensions // 2 :]
    # The angles alone are rounded to float32, as the product of two numbers of that type.
    periods = base ** (torch.arange(0, dimensions, 2, dtype=torch.float32) / dimensions)
    angles = (positions.float()[..., None, None] * (1.0 / periods)).double()
    result = torch.complex(real, imaginary) * torch.polar(torch.ones_like(angles), angles)
    if interleaved:
        rotated = torch.stack([result.real, result.imag], dim=-1).flatten(-2)
    else:
        rotated = torch.cat([result.real, result.imag], dim=-1)
    return torch.cat([rotated, passed], dim=-1)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    causal: bool,
    documents: Tensor | None = None,
    window: int | None = None,
    cap: float | None = None,
    keep: Tensor | None = None,
) -> Tensor:
    """Attend with q [b, s, h, d] to k and v [b, s, h, d], query by query, never across documents [b, s].

    `window` keys are seen on each side, itself included; `cap` bounds the scaled scores; `keep` [b, h, s, s] multiplies
    probabilities (dropout).
    """
    batch, length = q.shape[:2]
    rows = []
    for b in range(batch):
        for i in range(length):
            seen = [
                j
                for j in range(i + 1 if causal else length)
                if documents is None or documents[b, i].item() == documents[b, j].item()
                if window is None or abs(i - j) + 1 <= window
            ]
            scores = torch.einsum("jhd,hd->hj", k[b, seen], q[b, i]) * scale
            if cap is not None:
                scores = cap * (scores / cap).tanh()
            probabilities = (scores - scores.amax(-1, keepdim=True)).exp()
            probabilities = probabilities / probabilities.sum(-1, keepdim=True)
            if keep is not None:
                probabilities = probabilities * keep[b, :, i, seen]
            rows.append(torch.einsum("hj,jhd->hd", probabilities, v[b, seen]))
    return torch.stack(rows).view(q.shape)


def lengths_to_documents(lengths: Sequence[Sequence[int]]) -> Tensor:
    """Return document numbers [b, s] for the lengths of each row's documents."""
    rows = [[number for number, length in enumerate(row) for _ in range(length)] for row in lengths]
    return torch.tensor(rows, dtype=torch.int32)


def lengths_to_positions(lengths: Sequence[Sequence[int]]) -> Tensor:
    """Return positions [b, s] that start anew with each document."""
    return torch.tensor([[position for length in row for position in range(length)] for row in lengths])
