"""Shuffle without storing: a keyed bijection of range(length), computed for one index at a time.

A shuffled index of 10^9 samples would take 8 GB and minutes to make on every rank. A Feistel network needs neither: it
is a small cipher whose messages are the numbers below `length`, so the sample at a position is simply the encryption of
the position.

An index is written as two digits, `row * columns + column` with rows and columns near the square root of `length`. A
round adds a keyed hash of one digit to the other; it is undone by subtracting the same hash, so any number of rounds is
a bijection of range(rows * columns). That range is slightly larger than range(length): a result that falls outside is
encrypted again until it falls inside (cycle walking), which it must, because the cycle that it walks began inside.
"""

from __future__ import annotations

import hashlib
from math import isqrt
from typing import Final

import numpy as np
from numpy.typing import NDArray

ROUNDS: Final = 8
"""Four make a Feistel network indistinguishable from random for large domains; small ones need more to mix."""


def permute(indices: NDArray[np.int64], *, length: int, key: tuple[int, ...]) -> NDArray[np.int64]:
    """Return where the permutation of range(length) chosen by `key` sends each of `indices`."""
    if indices.size and (indices.min() < 0 or indices.max() >= length):
        raise IndexError(f"indices from {indices.min()} to {indices.max()} do not all lie in range({length})")
    round_keys = _round_keys(key)
    rows = np.uint64(isqrt(max(length - 1, 0)) + 1)
    columns = np.uint64(-(-length // int(rows)))
    result = _encrypt(indices.astype(np.uint64), rows, columns, round_keys)
    while (outside := result >= length).any():
        result[outside] = _encrypt(result[outside], rows, columns, round_keys)
    return result.astype(np.int64)


def _encrypt(
    values: NDArray[np.uint64], rows: np.uint64, columns: np.uint64, round_keys: NDArray[np.uint64]
) -> NDArray[np.uint64]:
    row, column = np.divmod(values, columns)
    for number, round_key in enumerate(round_keys):
        if number % 2 == 0:
            row = (row + _hash(column, round_key) % rows) % rows
        else:
            column = (column + _hash(row, round_key) % columns) % columns
    return row * columns + column


def _hash(values: NDArray[np.uint64], round_key: np.uint64) -> NDArray[np.uint64]:
    """Mix each value with the key, modulo 2^64: every bit of the result depends on every bit of both."""
    mixed = values + round_key
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # splitmix64's
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    hashed: NDArray[np.uint64] = mixed ^ (mixed >> np.uint64(31))
    return hashed


def _round_keys(key: tuple[int, ...]) -> NDArray[np.uint64]:
    """Return one independent number per round; the same on every machine and in every version of Python."""
    digest = hashlib.blake2b(",".join(map(str, key)).encode(), digest_size=8 * ROUNDS).digest()
    return np.frombuffer(digest, dtype="<u8").astype(np.uint64)
