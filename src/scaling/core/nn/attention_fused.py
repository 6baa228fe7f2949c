"""Fused attention kernels for GPUs, which hold no scores in memory, and the search for those that a device has.

Shape suffixes: B batch, S sequence, H query heads of this rank, K key-value heads of this rank, D head features.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from scaling.core.nn.attention_choice import AttentionKernel
from scaling.core.nn.attention_masks import PerMicroBatch
from scaling.core.nn.scores import Scores

Bounds = PerMicroBatch[Tensor]
"""Bounds of the documents in the flattened batch (`document_bounds`)."""

Compiler = Callable[[Callable[..., Any]], Callable[..., Any]]


def find_kernels(device: torch.device) -> frozenset[AttentionKernel]:
    """Return the kernels that a device has beyond those that every device has."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return frozenset()
    found = set()
    if importlib.util.find_spec("triton") is not None:
        found.add(AttentionKernel.FLEX)
    if torch.cuda.get_device_capability(device) >= (8, 0):
        if importlib.util.find_spec("flash_attn") is not None:
            found.add(AttentionKernel.FLASH_ATTN)
        if torch.version.hip is None and _varlen_has_windows():
            found.add(AttentionKernel.VARIABLE_LENGTH)
    return frozenset(found)


def _varlen_has_windows() -> bool:
    """Return whether PyTorch's kernel for documents has the options used here; it is young, and gains options."""
    from torch.nn.attention.varlen import varlen_attn

    return {"scale", "window_size", "enable_gqa"} <= inspect.signature(varlen_attn).parameters.keys()


def _sides(scores: Scores) -> tuple[int, int]:
    """Return how many keys a token sees before and after its own, -1 for all: the convention of flash attention."""
    before = -1 if scores.window is None else scores.window - 1
    return before, 0 if scores.causal else before


@final
class FlashAttention:
    """flash-attn's kernel for packed documents (Dao, arXiv:2307.08691): no mask in memory, work only inside documents.

    Needs the optional package flash-attn, a GPU and half precision. All heads have the same `scores`.
    """

    def __init__(self, scores: Scores, bounds: Bounds, *, deterministic: bool) -> None:
        from flash_attn import flash_attn_func, flash_attn_varlen_func

        self._dense: Any = flash_attn_func
        self._packed: Any = flash_attn_varlen_func
        self._bounds = bounds
        self._options = {
            "softmax_scale": scores.scale,
            "causal": scores.causal,
            "window_size": _sides(scores) if scores.window is not None else (-1, -1),
            "softcap": scores.cap or 0.0,
            "deterministic": deterministic,
        }

    def __call__(
        self, q_BSHD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor, document_ids: Tensor | None, samples: Tensor
    ) -> Tensor:
        """Return [b, s, h, d]."""
        if document_ids is None:
            dense: Tensor = self._dense(q_BSHD, k_BSKD, v_BSKD, **self._options)
            return dense
        length, bounds = q_BSHD.shape[1], self._bounds(document_ids, q_BSHD)
        q, k, v = (tensor.flatten(0, 1) for tensor in (q_BSHD, k_BSKD, v_BSKD))
        packed: Tensor = self._packed(q, k, v, bounds, bounds, length, length, **self._options)
        return packed.view_as(q_BSHD)


@final
class VariableLengthAttention:
    """PyTorch's flash kernel for packed documents: the kernel of flash-attn, without the package and without a cap.

    Its backward pass is bitwise reproducible only under `torch.use_deterministic_algorithms`.
    """

    def __init__(self, scores: Scores, bounds: Bounds) -> None:
        from torch.nn.attention.varlen import varlen_attn

        self._attend: Any = varlen_attn
        self._bounds = bounds
        self._options = {"scale": scores.scale, "window_size": _sides(scores)}

    def __call__(
        self, q_BSHD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor, document_ids: Tensor | None, samples: Tensor
    ) -> Tensor:
        """Return [b, s, h, d]."""
        length, bounds = q_BSHD.shape[1], self._bounds(document_ids, q_BSHD)
        q, k, v = (tensor.flatten(0, 1) for tensor in (q_BSHD, k_BSKD, v_BSKD))
        grouped = q.shape[1] != k.shape[1]
        out: Tensor = self._attend(q, k, v, bounds, bounds, length, length, enable_gqa=grouped, **self._options)
        return out.view_as(q_BSHD)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function compiled for the sizes and constants it is called with: windows and caps are none of these."""
    return torch.compile(function, dynamic=False)


def block_masks(*, causal: bool, window: int | None, compiler: Compiler = compiled) -> PerMicroBatch[BlockMask | None]:
    """Return the maker of masks for flex attention, which skips blocks nobody sees; a mask of None hides nothing."""
    create = compiler(create_block_mask)

    def derive(document_ids_BS: Tensor | None, like_BSHD: Tensor) -> BlockMask | None:
        rows, length = like_BSHD.shape[:2]
        if document_ids_BS is None and window is None and not causal:
            return None
        sees = _rule(document_ids_BS, causal=causal, window=window)
        of_rows = None if document_ids_BS is None else rows
        mask: BlockMask = create(sees, of_rows, None, length, length, device=like_BSHD.device)
        return mask

    return PerMicroBatch(derive)


def _rule(
    document_ids_BS: Tensor | None, *, causal: bool, window: int | None
) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        seen = query >= key if causal else query >= 0
        if window is not None:
            seen = seen & (query - key < window) & (key - query < window)
        if document_ids_BS is not None:
            seen = seen & (document_ids_BS[row, query] == document_ids_BS[row, key])
        return seen

    return sees


@final
class FlexAttention:
    """PyTorch's compiled attention (arXiv:2412.05496): windows, documents and caps are compiled into the kernel."""

    def __init__(
        self, scores: Scores, masks: PerMicroBatch[BlockMask | None], *, compiler: Compiler = compiled
    ) -> None:
        self._attend = compiler(flex_attention)
        self._masks = masks
        self._scale = scores.scale
        self._change = None if scores.cap is None else _capped(scores.cap)

    def __call__(
        self, q_BSHD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor, document_ids: Tensor | None, samples: Tensor
    ) -> Tensor:
        """Return [b, s, h, d]."""
        q, k, v = (tensor.transpose(1, 2) for tensor in (q_BSHD, k_BSKD, v_BSKD))
        out: Tensor = self._attend(
            q,
            k,
            v,
            score_mod=self._change,
            block_mask=self._masks(document_ids, q_BSHD),
            scale=self._scale,
            enable_gqa=q.shape[1] != k.shape[1],
        )
        return out.transpose(1, 2)


def _capped(cap: float) -> Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]:
    def change(score: Tensor, row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return cap * torch.tanh(score / cap)

    return change
