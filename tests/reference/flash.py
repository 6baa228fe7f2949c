"""What flash attention's functions promise, document by document: stands in for packages that need a GPU."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

Window = tuple[int, int]


def attend(q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, *, scale: float, window: Window, cap: float = 0.0) -> Tensor:
    """Attend within one document to keys up to `window` positions before and after; -1 is no limit."""
    group = q_THD.shape[1] // k_TKD.shape[1]
    k, v = (t.repeat_interleave(group, dim=1) for t in (k_TKD, v_TKD))
    scores = torch.einsum("ihd,jhd->hij", q_THD, k) * scale
    if cap > 0.0:
        scores = cap * (scores / cap).tanh()
    positions = torch.arange(len(q_THD))
    after = positions - positions.unsqueeze(1)
    seen = torch.ones_like(after, dtype=torch.bool)
    if window[0] >= 0:
        seen &= after >= -window[0]
    if window[1] >= 0:
        seen &= after <= window[1]
    return torch.einsum("hij,jhd->ihd", scores.masked_fill(~seen, -torch.inf).softmax(-1), v)


def of_documents(
    q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, *, scale: float, window: Window, cap: float
) -> Tensor:
    """Attend within the documents between bounds; those without length are none."""
    edges = bounds.tolist()
    parts = [slice(start, stop) for start, stop in pairwise(edges) if stop > start]
    return torch.cat([attend(q[part], k[part], v[part], scale=scale, window=window, cap=cap) for part in parts])


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    *,
    softmax_scale: float,
    causal: bool,
    window_size: Window,
    softcap: float,
    deterministic: bool,
) -> Tensor:
    """Attend as flash-attn does: causal is nothing after."""
    assert torch.equal(cu_seqlens_q, cu_seqlens_k)
    assert max_seqlen_q == max_seqlen_k >= int(cu_seqlens_q.diff().max())
    window = (window_size[0], 0 if causal else window_size[1])
    return of_documents(q, k, v, cu_seqlens_q, scale=softmax_scale, window=window, cap=softcap)


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    softmax_scale: float,
    causal: bool,
    window_size: Window,
    softcap: float,
    deterministic: bool,
) -> Tensor:
    """Attend row by row."""
    window = (window_size[0], 0 if causal else window_size[1])
    return torch.stack(
        [attend(*row, scale=softmax_scale, window=window, cap=softcap) for row in zip(q, k, v, strict=True)]
    )


def varlen_attn(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float,
    window_size: Window,
    enable_gqa: bool,
) -> Tensor:
    """Attend as PyTorch's does: (-1, 0) is causal, and heads are grouped where it is allowed."""
    assert torch.equal(cu_seq_q, cu_seq_k)
    assert max_q == max_k >= int(cu_seq_q.diff().max())
    assert enable_gqa or query.shape[1] == key.shape[1]
    return of_documents(query, key, value, cu_seq_q, scale=scale, window=window_size, cap=0.0)
