"""Attention with masks, in PyTorch alone: its scaled-dot-product kernels, and the same computation spelled out.

Shape suffixes: B batch, S sequence, H query heads, K key-value heads, D head features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from scaling.core.nn.attention_masks import Visible

_HALF = (torch.bfloat16, torch.float16)


def scaled_dot_product(q_BSHD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor, visible: Visible, *, scale: float) -> Tensor:
    """Attend through PyTorch's scaled-dot-product kernels (flash where the device has one). Returns [b, s, h, d].

    Half precision on a CPU is computed in float32 and rounded once, as in `linear`.
    """
    half_on_cpu = q_BSHD.device.type == "cpu" and q_BSHD.dtype in _HALF
    q, k, v = ((t.float() if half_on_cpu else t).transpose(1, 2) for t in (q_BSHD, k_BSKD, v_BSKD))
    out = F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=visible.mask,
        is_causal=visible.causal and visible.mask is None,
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return out.transpose(1, 2).to(q_BSHD.dtype)


def spelled_out(
    q_BSHD: Tensor,
    k_BSKD: Tensor,
    v_BSKD: Tensor,
    visible: Visible,
    *,
    scale: float,
    cap: float | None = None,
    keep: Tensor | None = None,
    probability: float = 0.0,
) -> Tensor:
    """Attend step by step: the reference for the kernels, and the only form that accepts a dropout mask.

    `cap` bounds the scaled scores. `keep` [b, h, s, s] says which attention probabilities are kept under dropout with
    `probability`. Returns [b, s, h, d].
    """
    wide = torch.float64 if q_BSHD.dtype == torch.float64 else torch.float32
    repeat = q_BSHD.shape[2] // k_BSKD.shape[2]
    q = q_BSHD.to(wide).transpose(1, 2)
    k = k_BSKD.to(wide).repeat_interleave(repeat, dim=2).transpose(1, 2)
    v = v_BSKD.to(wide).repeat_interleave(repeat, dim=2).transpose(1, 2)
    scores = (q @ k.transpose(2, 3)) * scale
    if cap is not None:
        scores = cap * torch.tanh(scores / cap)
    mask = visible.mask
    if mask is None and visible.causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    probabilities = scores.softmax(dim=-1)
    if keep is not None:
        probabilities = probabilities * keep
        if probability < 1.0:  # at 1 nothing is kept, so that there is nothing to scale up
            probabilities = probabilities / (1.0 - probability)
    return (probabilities @ v).transpose(1, 2).to(q_BSHD.dtype)
