"""Place records in rows: which of them, how much of each, and the tokens, boundaries and weights of a row. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from scaling.core import DataError
from scaling.transformer.data.batch import TextSample
from scaling.transformer.data.bins import Bins, one_each, pack
from scaling.transformer.data.boundaries import loss_weights, piece_starts
from scaling.transformer.data.packing import Span
from scaling.transformer.data.records.budget import TooLong
from scaling.transformer.data.records.record import Record
from scaling.transformer.data.split import Split

PLACEHOLDER = 0
"""The token in the places of a soft prompt; its embedding is looked up and replaced."""


class Records(Protocol):
    """Records, each readable without the others, under numbers that never change."""

    def __len__(self) -> int:
        """Return the number of records."""
        ...

    def read(self, index: int) -> Record:
        """Return a record."""
        ...

    def sizes(self) -> NDArray[np.int64]:
        """Return the number of tokens of each record."""
        ...

    def fingerprint(self) -> str:
        """Return a digest of the data's identity."""
        ...


@dataclass(frozen=True)
class RowRules:
    """Rules for placing records in rows of s + 1 tokens, whose first s are inputs and last s are targets."""

    sequence_length: int
    packing: bool = True
    """Put as many records in a row as there is room for; if false, each has a row of its own."""
    placeholders: int = 0
    """Tokens of a soft prompt, put in front of each record."""
    too_long: TooLong = TooLong.REFUSE
    padding: int = 0
    """The token that fills up rows."""

    @property
    def capacity(self) -> int:
        """The number of places in a row."""
        return self.sequence_length + 1

    @property
    def longest(self) -> int:
        """The most tokens that a record may have."""
        return self.capacity - self.placeholders


@dataclass(frozen=True)
class RowPlan:
    """Which records are in which row, and how many did not fit."""

    rows: Bins
    places: int
    """Places that records take, placeholders included."""
    too_long: int = 0
    """Records that are longer than a row, which are dropped or cut."""
    too_short: int = 0
    """Records in which nothing can be predicted."""
    without_weight: int = 0
    """Records of which too much was cut: no token that counts is left."""


def plan_rows(records: Records, rules: RowRules, split: Split, *, name: str) -> RowPlan:
    """Put the records of a part into rows, in the order of their numbers unless they are packed.

    Raises:
        DataError: A record is too long, and `rules` refuse such records.
    """
    sizes = records.sizes()
    chosen = split.contains(0, len(sizes))
    # The first token of a record has nothing before it but placeholders.
    short = chosen & (sizes < (1 if rules.placeholders else 2))
    long = chosen & (sizes > rules.longest)
    if long.any() and rules.too_long is TooLong.REFUSE:
        raise _too_long(np.flatnonzero(long), sizes, rules, name)
    empty = np.zeros(0, np.int64)
    if rules.too_long is TooLong.DROP:
        chosen &= ~long
    elif long.any():
        numbers = np.flatnonzero(long)
        counts = [bool(_target_weights(cut(records.read(int(number)), rules), rules).any()) for number in numbers]
        empty = numbers[~np.array(counts, np.bool_)]
        chosen[empty] = False
    chosen &= ~short
    used = np.flatnonzero(chosen).astype(np.int64)
    lengths = np.minimum(sizes[used], rules.longest) + rules.placeholders
    rows = pack(used, lengths, rules.capacity) if rules.packing else one_each(used)
    return RowPlan(rows, int(lengths.sum()), int(long.sum()), int(short.sum()), len(empty))


def cut(record: Record, rules: RowRules) -> Record:
    """Return a record, or as much of it as fits a row."""
    kept = cut_span(len(record.tokens), rules)
    return Record(record.tokens[kept], record.weights[kept])


def cut_span(size: int, rules: RowRules) -> slice:
    """Return which tokens of a record of this size are used."""
    start = max(size - rules.longest, 0) if rules.too_long is TooLong.CUT_LEFT else 0
    return slice(start, min(start + rules.longest, size))


def lay(numbers: Sequence[int], records: Sequence[Record], rules: RowRules, *, name: str) -> TextSample:
    """Put whole records, given with their numbers, one after the other into a row, each after its placeholders.

    Each token has its own weight as a target. The first token of a record without placeholders is no target, whatever
    its weight.
    """
    tokens = np.full(rules.capacity, rules.padding, np.int64)
    weights = np.zeros(rules.capacity, np.float32)
    spans, place = [], 0
    for number, record in zip(numbers, records, strict=True):
        kept = cut_span(len(record.tokens), rules)
        size = kept.stop - kept.start
        tokens[place : place + rules.placeholders] = PLACEHOLDER
        place += rules.placeholders
        tokens[place : place + size] = record.tokens[kept]
        weights[place : place + size] = record.weights[kept]
        spans.append(Span(number, kept.start, kept.stop))
        place += size
    starts = piece_starts([rules.placeholders + span.stop - span.start for span in spans], rules.capacity)
    return TextSample(
        tokens,
        starts,
        loss_weights(starts, weights),
        tuple(spans),
        name,
        unit="record",
        placeholders=rules.placeholders,
    )


def _target_weights(record: Record, rules: RowRules) -> NDArray[np.float32]:
    return record.weights if rules.placeholders else record.weights[1:]


def _too_long(long: NDArray[np.intp], sizes: NDArray[np.int64], rules: RowRules, name: str) -> DataError:
    first = int(long[0])
    many = "" if len(long) == 1 else f", and {len(long) - 1} more are too long"
    prompt = f", less {rules.placeholders} of the soft prompt" if rules.placeholders else ""
    return DataError(
        f"record {first} of {name} has {sizes[first]} tokens, and a sequence holds {rules.longest} "
        f"(transformer_architecture.sequence_length + 1{prompt}){many}; set data.too_long to drop, cut_right or "
        "cut_left, or use longer sequences."
    )
