"""Attention mask, positions and loss weights, all three derived from one thing: where documents start.

Shapes: B rows of a micro-batch, T = S + 1 tokens of a row (S inputs, and S targets one token further on).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.integer[Any]]


def document_starts(tokens_BT: IntArray, starts_BT: BoolArray, *, eod_token_id: int) -> BoolArray:
    """Mark every token that begins a document, [B, T].

    A document begins where the data set says so (`starts_BT`), after an end-of-document token, and with each row,
    which cannot see what is before it.
    """
    result: BoolArray = starts_BT.copy()
    result[:, 0] = True
    result[:, 1:] |= tokens_BT[:, :-1] == eod_token_id
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


def loss_weights(starts_BT: BoolArray) -> NDArray[np.float32]:
    """Weigh each target, [B, S]: 0 where it begins a document, for nothing before it could announce it, else 1.

    So the loss of packed rows is the sum of the losses of the pieces of documents in them, however they are packed.
    """
    return (~starts_BT[:, 1:]).astype(np.float32)
