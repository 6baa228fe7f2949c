"""Attention mask, positions and loss weights, all three derived from the starts of pieces.

A piece is a part of a document, or a record. Shapes: B rows of a micro-batch, T = S + 1 tokens of a row (S inputs, and
S targets one token further on).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.integer[Any]]
FloatArray = NDArray[np.float32]


def piece_starts(sizes: Sequence[int], length: int) -> BoolArray:
    """Mark the first token of each piece, given their sizes, [T = `length`]; each token after them is a piece."""
    result: BoolArray = np.zeros(length, np.bool_)
    ends = np.cumsum([0, *sizes])
    result[ends[:-1]] = True
    result[ends[-1] :] = True
    return result


def document_starts(tokens_T: IntArray, starts_T: BoolArray, *, eod_token_id: int) -> BoolArray:
    """Mark every token that begins a document, [T] or [B, T].

    A document begins where the data set says so (`starts_T`), after an end-of-document token, and at the start of each
    row, which cannot see earlier tokens.
    """
    result: BoolArray = starts_T.copy()
    result[..., 0] = True
    result[..., 1:] |= tokens_T[..., :-1] == eod_token_id
    return result


def document_ids(starts_BT: BoolArray) -> NDArray[np.int32]:
    """Number the documents of each row from 0, [B, S]: inputs attend to each other only where the numbers agree."""
    numbers_BS: NDArray[np.int32] = np.cumsum(starts_BT[:, :-1], axis=1, dtype=np.int32)
    numbers_BS -= 1
    return numbers_BS


def position_ids(starts_BT: BoolArray, *, restart: bool) -> NDArray[np.int64]:
    """Count the inputs of each document (`restart`) or of each row from 0, [B, S]."""
    rows, inputs = starts_BT.shape[0], starts_BT.shape[1] - 1
    running_BS: NDArray[np.int64] = np.tile(np.arange(inputs, dtype=np.int64), (rows, 1))
    if not restart:
        return running_BS
    latest_start_BS: NDArray[np.int64] = np.maximum.accumulate(running_BS * starts_BT[:, :-1], axis=1)
    positions_BS: NDArray[np.int64] = running_BS - latest_start_BS
    return positions_BS


def loss_weights(starts_T: BoolArray, token_weights_T: FloatArray | None = None) -> FloatArray:
    """Return the weight of each target, [S] or [B, S]: 0 where it begins a piece, since nothing before predicts it.

    The others have their own weight (`token_weights_T`), or 1 without those. So the loss of packed rows is the sum of
    the losses of the pieces in them, however they are packed.
    """
    announced: FloatArray = (~starts_T[..., 1:]).astype(np.float32)
    return announced if token_weights_T is None else announced * token_weights_T[..., 1:]
