"""Which tokens of which documents make sequence number k: computed on request, never stored per sequence.

A sequence of length s takes s + 1 tokens: tokens[:-1] are its inputs, tokens[1:] its targets. Consecutive sequences
share one token, the last target of one being the first input of the next, so that every token is a target once.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Lengths = Callable[[int, int], NDArray[np.int64]]
"""`lengths(start, stop)`: the number of tokens of each of these documents, 0 for one that is left out."""

BLOCK = 64
"""Documents whose lengths are summed up on request; one total per block is kept: 12 MB for 10^8 documents."""


class Span(NamedTuple):
    """Tokens `start` to `stop` (exclusive) of one document."""

    document: int
    start: int
    stop: int


class Plan(Protocol):
    """The sequences that some documents are cut into."""

    def __len__(self) -> int:
        """Return the number of sequences."""
        ...

    def spans(self, index: int) -> tuple[Span, ...]:
        """Return the spans of the s + 1 tokens of a sequence (fewer at the very end of the data, if that is kept)."""
        ...


@dataclass(frozen=True)
class Packing:
    """How documents are cut into sequences."""

    sequence_length: int
    only_full_sequences: bool = False
    """Cut sequences out of single documents only, and drop the rest of each document."""
    allow_incomplete_sequences_every_n: int = 0
    """With `only_full_sequences`: after every n full sequences make one from left-over pieces. 0: never."""
    drop_last: bool = True
    """Leave out the tokens at the end of the data that do not fill a sequence; otherwise the last one is padded."""

    def plan(self, lengths: Lengths, documents: int) -> Plan:
        """Cut `documents` documents of these lengths into sequences, in the order of the documents."""
        if self.only_full_sequences:
            return FullSequences(
                lengths, documents, self.sequence_length, incomplete_every=self.allow_incomplete_sequences_every_n
            )
        return TokenStream(lengths, documents, self.sequence_length, drop_last=self.drop_last)


class PrefixSums:
    """Running totals over many counts: one in `BLOCK` is held in memory, the others are added up on request."""

    def __init__(self, counts: Lengths, items: int) -> None:
        self._counts = counts
        self._items = items
        totals = [np.zeros(1, np.int64)]
        step = BLOCK * 2048
        for start in range(0, items, step):
            chunk = counts(start, min(start + step, items))
            sums = np.add.reduceat(chunk, np.arange(0, len(chunk), BLOCK), dtype=np.int64)
            totals.append(np.cumsum(sums) + totals[-1][-1])
        self._block_totals = np.concatenate(totals)

    @property
    def total(self) -> int:
        """The sum of all counts."""
        return int(self._block_totals[-1])

    def find(self, position: int) -> tuple[int, int]:
        """Return the item that holds `position` (0 <= position < total), and the place of the position within it."""
        block = int(np.searchsorted(self._block_totals, position, side="right")) - 1
        first = block * BLOCK
        ends = np.cumsum(self._counts(first, min(first + BLOCK, self._items)))
        within = position - int(self._block_totals[block])
        item = int(np.searchsorted(ends, within, side="right"))
        return first + item, within - (int(ends[item - 1]) if item else 0)

    def before(self, item: int) -> int:
        """Return the sum of the counts of all items before `item`."""
        block = item // BLOCK
        first = block * BLOCK
        head = int(self._counts(first, item).sum()) if item > first else 0
        return int(self._block_totals[block]) + head


def walk(lengths: Lengths, documents: int, start: tuple[int, int], tokens: int) -> tuple[Span, ...]:
    """Return the spans of up to `tokens` tokens from (document, offset) `start` on, in as many documents as needed."""
    document, offset = start
    spans: list[Span] = []
    while tokens > 0 and document < documents:
        # Most sequences end within a few documents; a block at a time also passes long runs of left-out ones quickly.
        block = lengths(document, min(document + BLOCK, documents))
        for place in np.flatnonzero(block > 0):
            begin = offset if place == 0 else 0
            taken = min(int(block[place]) - begin, tokens)
            if taken > 0:
                spans.append(Span(document + int(place), begin, begin + taken))
                tokens -= taken
            if tokens == 0:
                break
        document, offset = document + len(block), 0
    return tuple(spans)


class TokenStream:
    """All documents end to end, cut every s tokens."""

    def __init__(self, lengths: Lengths, documents: int, sequence_length: int, *, drop_last: bool) -> None:
        self._lengths = lengths
        self._documents = documents
        self._sequence_length = sequence_length
        self._sums = PrefixSums(lengths, documents)
        targets = max(self._sums.total - 1, 0)
        self._sequences = targets // sequence_length if drop_last else -(-targets // sequence_length)

    def __len__(self) -> int:
        return self._sequences

    def spans(self, index: int) -> tuple[Span, ...]:
        """Return the spans of the tokens of a sequence."""
        start = self._sums.find(index * self._sequence_length)
        return walk(self._lengths, self._documents, start, self._sequence_length + 1)


class FullSequences:
    """Sequences from single documents, and on request one from left-over pieces for every n of these sequences.

    The left-over pieces of documents are dropped, with one exception: as soon as there are n full sequences for each
    mixed one and n more, the next left-over piece of two or more tokens begins a mixed sequence. The documents that
    follow fill it up, and the last of them continues from the shared token. A mixed sequence that is never filled up is
    dropped.

    With n, construction is one pass in Python (some million documents a second) and keeps 24 bytes per mixed sequence.
    """

    def __init__(self, lengths: Lengths, documents: int, sequence_length: int, *, incomplete_every: int) -> None:
        self._lengths = lengths
        self._documents = documents
        self._sequence_length = sequence_length
        self._sums = PrefixSums(self._full_sequences, documents)
        self._mixed_index = array("q")
        self._mixed_document = array("q")
        self._mixed_offset = array("q")
        self._sequences = self._plan_mixed(incomplete_every) if incomplete_every else self._sums.total

    def _full_sequences(self, start: int, stop: int) -> NDArray[np.int64]:
        targets: NDArray[np.int64] = np.maximum(self._lengths(start, stop) - 1, 0)
        return targets // self._sequence_length

    def _plan_mixed(self, every: int) -> int:
        """Find where the mixed sequences begin; return the number of all sequences."""
        size = self._sequence_length
        full = mixed = 0
        missing = 0  # tokens that the mixed sequence being made still needs
        begin = (0, 0)
        for first in range(0, self._documents, BLOCK * 64):
            block = self._lengths(first, min(first + BLOCK * 64, self._documents)).tolist()
            for document, length in enumerate(block, start=first):
                offset = 0
                if missing:
                    taken = min(missing, length)
                    missing -= taken
                    if missing:
                        continue
                    self._mixed_index.append(full + mixed)
                    self._mixed_document.append(begin[0])
                    self._mixed_offset.append(begin[1])
                    mixed += 1
                    offset = taken - 1
                pieces = max(length - offset - 1, 0) // size
                full += pieces
                offset += pieces * size
                if length - offset >= 2 and full >= every * (mixed + 1):
                    begin = (document, offset)
                    missing = size + 1 - (length - offset)
        return full + mixed

    def __len__(self) -> int:
        return self._sequences

    def spans(self, index: int) -> tuple[Span, ...]:
        """Return the spans of the tokens of a sequence."""
        size = self._sequence_length
        latest = bisect_right(self._mixed_index, index) - 1
        if latest < 0:
            document, piece = self._sums.find(index)
            return (Span(document, piece * size, piece * size + size + 1),)
        mixed = self._mixed(latest)
        if self._mixed_index[latest] == index:
            return mixed
        # After the mixed sequence its last document continues from the token they share, then whole documents follow.
        document, _, stop = mixed[-1]
        piece = index - self._mixed_index[latest] - 1
        rest = (int(self._lengths(document, document + 1)[0]) - stop) // size
        if piece < rest:
            start = stop - 1 + piece * size
            return (Span(document, start, start + size + 1),)
        document, piece = self._sums.find(self._sums.before(document + 1) + piece - rest)
        return (Span(document, piece * size, piece * size + size + 1),)

    def _mixed(self, which: int) -> tuple[Span, ...]:
        start = (self._mixed_document[which], self._mixed_offset[which])
        return walk(self._lengths, self._documents, start, self._sequence_length + 1)
