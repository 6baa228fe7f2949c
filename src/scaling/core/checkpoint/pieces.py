"""Save a checkpoint of tensors whose pieces are loaded one after another, as they are written. One process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from scaling.core.boxes import Box
from scaling.core.checkpoint.base import BASE
from scaling.core.checkpoint.communicator import Alone
from scaling.core.checkpoint.files import TYPE_NAMES, Piece
from scaling.core.checkpoint.folders import Retention, new_step_folder
from scaling.core.checkpoint.header import placed, tensor_bytes
from scaling.core.checkpoint.manifest import json_text
from scaling.core.checkpoint.save import Job, Saver, versions
from scaling.core.checkpoint.share import Share
from scaling.core.storage.json_values import Json

FILE_BYTES: Final = 4 * 2**30
"""The largest size of a data file, unless a single piece is larger."""


@dataclass(frozen=True)
class LazyTensor:
    """A whole tensor by name; each of its boxes comes with a function that loads its values, in `dtype`."""

    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    parts: Iterable[tuple[Box, Callable[[], Tensor]]]


def _place(tensor: LazyTensor) -> tuple[bool, int]:
    dtype = TYPE_NAMES[tensor.dtype]
    return placed(dtype, tensor_bytes(dtype, tensor.shape))


def save_pieces(
    save_dir: Path,
    step: int,
    tensors: Iterable[LazyTensor],
    *,
    scalars: Mapping[str, Json],
    information: Mapping[str, Json],
) -> Path:
    """Write tensors, which their parts must cover exactly, as the checkpoint of a step that does not exist yet.

    Only data being written and hashed are held in memory; in a checkpoint of weights trained on a base, also all small
    pieces, which are packed. The present versions are added to `information`.

    Raises:
        CheckpointError: The step folder exists, or a tensor is not covered.
        StorageError: Writing failed; nothing is left behind.
    """
    target = new_step_folder(save_dir, step)
    pieces = [
        Piece(tensor.key, tensor.shape, box, TYPE_NAMES[tensor.dtype], load)
        for tensor in sorted(tensors, key=_place)
        for box, load in tensor.parts
    ]
    saver = Saver(save_dir, Alone(), Retention(), {**information, **versions()}, FILE_BYTES)
    report = saver.run(Job(step, Share(pieces, packed=BASE in scalars), json_text(scalars, "the scalars")))
    if report.error is not None:
        raise report.error
    return target
