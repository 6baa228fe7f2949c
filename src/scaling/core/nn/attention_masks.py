"""Masks: which positions see each other, in each form that a kernel needs, made once for all layers of a micro-batch.

Shape suffixes: B batch, S sequence, H heads, D head features.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar, final

import torch
from torch import Tensor

Derived = TypeVar("Derived")


@final
class PerMicroBatch(Generic[Derived]):
    """A value derived from a micro-batch's document numbers, once for all the layers that share this object.

    `derive` is called with the numbers (or None) and with a tensor [b, s, ...] that gives size and device. Only the
    last result is kept: layers run one micro-batch after another.
    """

    def __init__(self, derive: Callable[[Tensor | None, Tensor], Derived]) -> None:
        self._derive = derive
        self._documents: weakref.ref[Tensor] | None = None
        self._like: tuple[torch.Size, torch.device] | None = None
        self._kept: Derived

    def __call__(self, document_ids_BS: Tensor | None, like_BSHD: Tensor) -> Derived:
        """Return the value derived from int32 document numbers [b, s]; None = every row is one document."""
        like = (like_BSHD.shape[:2], like_BSHD.device)
        if self._like != like or not self._is_of(document_ids_BS):
            self._kept = self._derive(document_ids_BS, like_BSHD)
            self._documents = None if document_ids_BS is None else weakref.ref(document_ids_BS)
            self._like = like
        return self._kept

    def _is_of(self, document_ids_BS: Tensor | None) -> bool:
        if self._documents is None:
            return document_ids_BS is None
        return document_ids_BS is not None and self._documents() is document_ids_BS  # None if gone


@dataclass(frozen=True)
class Visible:
    """The keys that the queries see.

    `mask` [b or 1, 1, queries, keys] is None where `causal` alone decides: a query sees no later key, or all keys.
    """

    mask: Tensor | None
    causal: bool


@final
class DocumentMasks:
    """The masks of one kind of layer: documents see only themselves; `causal` and `window` are those of `Scores`."""

    def __init__(self, *, causal: bool, window: int | None = None) -> None:
        self.causal = causal
        self.window = window
        self._masks = PerMicroBatch(self._mask)

    def __call__(self, document_ids_BS: Tensor | None, like_BSHD: Tensor) -> Visible:
        """Return the keys visible for int32 document numbers [b, s]; None = every row is one document."""
        if document_ids_BS is None and self.window is None:
            return Visible(None, self.causal)
        return Visible(self._masks(document_ids_BS, like_BSHD), self.causal)

    def _mask(self, document_ids_BS: Tensor | None, like_BSHD: Tensor) -> Tensor | None:
        length, device = like_BSHD.shape[1], like_BSHD.device
        # Reading the ids costs nothing on a CPU; on a GPU it would stop the host until the device catches up.
        if document_ids_BS is not None and device.type == "cpu" and _one_document_each(document_ids_BS):
            document_ids_BS = None
        window = None if self.window is None or self.window >= length else self.window
        if document_ids_BS is None:
            return None if window is None else band(length, length, causal=self.causal, window=window, device=device)
        same = document_ids_BS.unsqueeze(2) == document_ids_BS.unsqueeze(1)
        if self.causal:
            same = same.tril()
        if window is not None:
            same = same.triu(1 - window) if self.causal else same.triu(1 - window).tril(window - 1)
        return same.unsqueeze(1)


def _one_document_each(document_ids_BS: Tensor) -> bool:
    return bool((document_ids_BS == document_ids_BS[:, :1]).all())


def band(queries: int, keys: int, *, causal: bool, window: int | None, device: torch.device) -> Tensor:
    """Return the mask [1, 1, queries, keys] of the last `queries` of `keys` positions of one document."""
    earlier = keys - queries
    mask = torch.ones(queries, keys, dtype=torch.bool, device=device)
    if window is not None:
        mask = mask.triu(earlier + 1 - window).tril(earlier + window - 1)
    return (mask.tril(earlier) if causal else mask)[None, None]


def document_bounds(document_ids_BS: Tensor | None, like_BSHD: Tensor) -> Tensor:
    """Return the documents' bounds in the flattened batch, int32: [b + 1] for None, which is a document in each row.

    Otherwise the bounds are padded with the end of the batch to [b * s + 1]: the length does not depend on the data, so
    nothing is read back from the device. The kernel ignores the documents of length zero at the end.
    """
    rows, length = like_BSHD.shape[:2]
    total, device = rows * length, like_BSHD.device
    if document_ids_BS is None:
        return torch.arange(0, total + 1, length, dtype=torch.int32, device=device)
    starts = torch.ones_like(document_ids_BS, dtype=torch.bool)
    starts[:, 1:] = document_ids_BS[:, 1:] != document_ids_BS[:, :-1]
    positions = torch.where(starts.flatten(), torch.arange(total, device=device), total)
    return torch.cat([positions.sort().values, positions.new_full((1,), total)]).to(torch.int32)
