"""The arithmetic of attention over packed documents: which positions see each other, and PyTorch's kernels.

Shape suffixes: B batch, S sequence, H query heads, K key-value heads, D head features.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_HALF = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Documents:
    """Which positions may see each other: those of the same document, and none later than itself if `causal`.

    `mask` [b, 1, s, s] is None where the causal rule alone decides (rows of one document) or everything is visible.
    """

    mask: Tensor | None
    causal: bool


class DocumentMasks:
    """Builds the mask of a micro-batch once, for all the layers that share this object.

    Keeps only the last one: layers run one micro-batch after another.
    """

    def __init__(self, *, causal: bool) -> None:
        self.causal = causal
        self._of: weakref.ref[Tensor] | None = None
        self._documents = Documents(None, causal)

    def __call__(self, document_ids_BS: Tensor | None) -> Documents:
        """Return the mask for int32 document numbers [b, s]; None = every row is one document."""
        if document_ids_BS is None:
            return Documents(None, self.causal)
        if self._of is None or self._of() is not document_ids_BS:
            self._documents = Documents(self._mask(document_ids_BS), self.causal)
            self._of = weakref.ref(document_ids_BS)
        return self._documents

    def _mask(self, document_ids_BS: Tensor) -> Tensor | None:
        # Reading the ids costs nothing on a CPU; on a GPU it would stop the host until the device catches up.
        if document_ids_BS.device.type == "cpu" and bool((document_ids_BS == document_ids_BS[:, :1]).all()):
            return None
        same = document_ids_BS.unsqueeze(2) == document_ids_BS.unsqueeze(1)
        return (same.tril() if self.causal else same).unsqueeze(1)


def scaled_dot_product(q_BSHD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor, documents: Documents, *, scale: float) -> Tensor:
    """Attend through PyTorch's scaled-dot-product kernels (flash where the device has one). Returns [b, s, h, d].

    Half precision on a CPU is computed in float32 and rounded once, as in `linear`.
    """
    half_on_cpu = q_BSHD.device.type == "cpu" and q_BSHD.dtype in _HALF
    q, k, v = ((t.float() if half_on_cpu else t).transpose(1, 2) for t in (q_BSHD, k_BSKD, v_BSKD))
    out = F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=documents.mask,
        is_causal=documents.causal and documents.mask is None,
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return out.transpose(1, 2).to(q_BSHD.dtype)


def spelled_out(
    q_BSHD: Tensor,
    k_BSKD: Tensor,
    v_BSKD: Tensor,
    documents: Documents,
    *,
    scale: float,
    keep: Tensor | None = None,
    probability: float = 0.0,
) -> Tensor:
    """Attend step by step: the reference for the kernels, and the one that takes a dropout mask.

    `keep` [b, h, s, s] says which attention probabilities stay under dropout with `probability`. Returns [b, s, h, d].
    """
    wide = torch.float64 if q_BSHD.dtype == torch.float64 else torch.float32
    repeat = q_BSHD.shape[2] // k_BSKD.shape[2]
    q = q_BSHD.to(wide).transpose(1, 2)
    k = k_BSKD.to(wide).repeat_interleave(repeat, dim=2).transpose(1, 2)
    v = v_BSKD.to(wide).repeat_interleave(repeat, dim=2).transpose(1, 2)
    scores = (q @ k.transpose(2, 3)) * scale
    mask = documents.mask
    if mask is None and documents.causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    probabilities = scores.softmax(dim=-1)
    if keep is not None:
        probabilities = probabilities * keep
        if probability < 1.0:  # else nothing stays, and nothing can be scaled up to make up for it
            probabilities = probabilities / (1.0 - probability)
    return (probabilities @ v).transpose(1, 2).to(q_BSHD.dtype)


def document_bounds(document_ids_BS: Tensor) -> Tensor:
    """Return the documents' bounds in the flattened batch, int32 [b * s + 1], filled up with the end.

    The length does not depend on the data, so nothing is read back from the device; documents of length zero at the end
    are nothing to the kernel.
    """
    starts = torch.ones_like(document_ids_BS, dtype=torch.bool)
    starts[:, 1:] = document_ids_BS[:, 1:] != document_ids_BS[:, :-1]
    flat = starts.flatten()
    total = flat.numel()
    positions = torch.where(flat, torch.arange(total, device=flat.device), total)
    return torch.cat([positions.sort().values, positions.new_full((1,), total)]).to(torch.int32)


def flash_attention_available(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether the flash-attn package can run here."""
    if device.type != "cuda" or dtype not in _HALF:
        return False
    try:
        import flash_attn  # noqa: F401
    except ImportError:
        return False
    return True


def cached_documents(queries: int, keys: int, device: torch.device) -> Documents:
    """Return what the last `queries` of `keys` positions may see: everything up to themselves."""
    if queries == 1:
        return Documents(None, causal=False)
    if queries == keys:
        return Documents(None, causal=True)
    mask = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
    return Documents(mask[None, None], causal=True)
