"""Copies of a share in host memory, so that training may change the tensors while a thread writes them."""

from __future__ import annotations

from dataclasses import replace
from typing import final

import torch
from torch import Tensor

from scaling.core.checkpoint.files import TORCH_TYPES, Piece, constant
from scaling.core.checkpoint.share import Share


@final
class Staging:
    """Host buffers that are kept from one save to the next; pinned where the tensors are on a GPU.

    `copy` returns at once for tensors on a GPU: the copies are ordered on its current stream, before whatever training
    does next, and `wait` (called by the writing thread) blocks until they have arrived.
    """

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, str, tuple[int, ...]], Tensor] = {}
        self._events: list[torch.cuda.Event] = []

    def copy(self, share: Share) -> Share:
        """Return the share with every piece backed by a host buffer. The buffers are valid until the next call."""
        views = [(piece, piece.load().detach()) for piece in share.pieces]
        kept = {}
        for piece, view in views:
            key = (piece.key, piece.dtype, piece.box.shape)
            found = self._buffers.get(key)
            kept[key] = _host_buffer(piece, view) if found is None else found
        self._buffers = kept
        staged = []
        for piece, view in views:
            buffer = kept[piece.key, piece.dtype, piece.box.shape]
            buffer.copy_(view, non_blocking=True)
            staged.append(replace(piece, load=constant(buffer)))
        devices = {view.device for _, view in views if view.is_cuda}
        self._events = [torch.cuda.current_stream(device).record_event() for device in devices]
        return replace(share, pieces=staged)

    def wait(self) -> None:
        """Block until the copies have arrived."""
        for event in self._events:
            event.synchronize()


def _host_buffer(piece: Piece, view: Tensor) -> Tensor:
    return torch.empty(piece.box.shape, dtype=TORCH_TYPES[piece.dtype], pin_memory=view.is_cuda)
