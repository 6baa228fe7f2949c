"""The positions that a step of generation adds to texts, and where caches keep them. Pure, without torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from typing_extensions import Self

from scaling.core.nn.scores import Scores


@dataclass(frozen=True)
class Prefill:
    """`count` new positions of one row of a pool, the first of which is `start`."""

    pool: int
    row: int
    start: int
    count: int

    @property
    def tokens(self) -> int:
        """Return the number of tokens in the span."""
        return self.count


@dataclass(frozen=True)
class Decode:
    """One new position in each of the first rows of a pool: `starts[i]` in row i."""

    pool: int
    starts: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """Return the number of tokens in the span."""
        return len(self.starts)


Span: TypeAlias = Prefill | Decode
"""Consecutive tokens of a step of generation that are treated in the same way."""


@dataclass(frozen=True, kw_only=True)
class CacheShape:
    """The shape of a layer's cache on one rank for one pool: `rows` texts of up to `capacity` tokens."""

    rows: int
    capacity: int
    heads: int
    """Key-value heads of this rank."""
    head_size: int
    window: int | None = None
    """No query head sees more than this many of the last positions, so only these are kept. None: all are kept."""

    @classmethod
    def of(cls, scores: Scores, *, rows: int, capacity: int, heads: int, head_size: int) -> Self:
        """Return the shape that a layer with these scores needs. A window of only some heads saves nothing."""
        window = scores.window if scores.windowed_heads is None else None
        return cls(rows=rows, capacity=capacity, heads=heads, head_size=head_size, window=window)

    @property
    def positions(self) -> int:
        """Return how many positions of a row are kept: position p in the slot p % positions."""
        return self.capacity if self.window is None else min(self.capacity, self.window)

    def bytes(self, item_size: int) -> int:
        """Return the memory of the keys and values, whose elements have `item_size` bytes."""
        return 2 * self.rows * self.heads * self.positions * self.head_size * item_size


@dataclass(frozen=True)
class Seen:
    """The slots that the rows of a pool see: together those from `first` to `stop`, each row a part of them."""

    first: int
    stop: int
    rows: tuple[tuple[int, int], ...]
    """The first slot that each row sees, and the first slot after those it sees. If all agree, nothing is masked."""

    @property
    def alike(self) -> bool:
        """Return whether every row sees all of the slots."""
        return all(row == (self.first, self.stop) for row in self.rows)


def seen(starts: Sequence[int], window: int | None, positions: int) -> Seen:
    """Return the slots that new positions `starts` see in caches of `positions` slots that hold them already."""
    rows = []
    for start in starts:
        first = 0 if window is None or start >= positions else max(0, start + 1 - window)
        rows.append((first, min(start + 1, positions)))
    return Seen(min(first for first, _ in rows), max(stop for _, stop in rows), tuple(rows))


def stretches(first: int, stop: int, positions: int) -> Iterator[tuple[int, int, int]]:
    """Cut the positions from `first` to `stop` where their slots wrap around: yield (position, slot, count)."""
    while first < stop:
        slot = first % positions
        count = min(stop - first, positions - slot)
        yield first, slot, count
        first += count


def head_pieces(heads: range, group: int) -> Iterator[tuple[range, range]]:
    """Cut query heads so that those of a piece share key-value heads evenly: yield (query heads, key-value heads).

    `group` query heads share one key-value head. A piece has whole groups, or a part of a single one.
    """
    start = heads.start
    while start < heads.stop:
        whole = heads.stop - heads.stop % group
        stop = whole if start % group == 0 and whole > start else min(heads.stop, start - start % group + group)
        yield range(start, stop), range(start // group, (stop - 1) // group + 1)
        start = stop
