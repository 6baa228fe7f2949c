"""The update in chunks that fit into a cache: scale, convert, update and clear each one before the next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, final

import torch
from torch import Tensor

from scaling.core.optimizer.rule import Pace, UpdateRule
from scaling.core.optimizer.shard import FlatShard

CPU_CHUNK: Final = 2**19
"""Elements at a time on a CPU: 8 MiB of weights, gradients and two moments. Threads wait for each other at the end of
each operation, so smaller chunks cost more than they save."""
SCRATCH_CHUNK: Final = 2**24
"""Elements at a time elsewhere, where something is converted: 64 MiB of each vector, some hundred launches for a
billion elements."""


def cut(lengths: Sequence[int], *, most: int) -> list[list[tuple[int, int, int]]]:
    """Cut vectors, one after another, into chunks of `most` elements: (vector, start, stop) of each piece. Pure.

    All chunks but the last are full, so small vectors share a chunk.
    """
    chunks: list[list[tuple[int, int, int]]] = []
    room = 0
    for number, length in enumerate(lengths):
        start = 0
        while start < length:
            if not room:
                chunks.append([])
                room = most
            stop = min(length, start + room)
            chunks[-1].append((number, start, stop))
            room -= stop - start
            start = stop
    return chunks


@dataclass(frozen=True)
class _Chunk:
    """Some ranges of shards that are updated together."""

    seen: Sequence[FlatShard]
    """The ranges as the rule sees them: vectors in a narrower type than the master's are in the scratch memory."""
    scaled: list[Tensor]
    """The gradients of `seen`."""
    stored: list[Tensor]
    """The gradients and slots that are converted into `wide`."""
    wide: list[Tensor]
    stored_slots: list[Tensor]
    """The slots that are converted back from `wide_slots`."""
    wide_slots: list[Tensor]
    weights: list[Tensor]
    """The weights to which `masters` are copied."""
    masters: list[Tensor]
    summed: list[Tensor]
    """Gradients in the flat buffers, to be cleared."""


@final
class ChunkedUpdate:
    """The update of shards of one kind: scale their gradients, update the shards by a rule, and clear the gradients.

    On a CPU, gradients then travel between memory and caches once instead of four times. Vectors narrower than float32
    are converted chunk by chunk in scratch memory that all chunks share, so nothing is held twice. Chunks change no bit
    of the result, since every weight is updated by itself. Rules of whole matrices get all shards at once, as they are
    stored.
    """

    def __init__(self, shards: Sequence[FlatShard], rule: UpdateRule, scratch: Tensor) -> None:
        self._rule = rule
        self._dtype = shards[0].master.dtype
        if rule.whole_matrices:
            self._chunks = [_chunk(shards, shards)]
            return
        self._chunks = []
        for pieces in cut([len(shard.master) for shard in shards], most=_most(shards)):
            position, stored, seen = 0, [], []
            for number, start, stop in pieces:
                part = shards[number].part(start, stop)
                stored.append(part)
                seen.append(_widened(part, scratch[:, position : position + stop - start]))
                position += stop - start
            self._chunks.append(_chunk(stored, seen))

    def update(self, coefficient: Tensor, pace: Pace) -> None:
        """Update the shards with their gradients times `coefficient` (0-d, on the device), and clear the gradients."""
        factor = coefficient.to(self._dtype)
        for chunk in self._chunks:
            if chunk.stored:
                torch._foreach_copy_(chunk.wide, chunk.stored)
            torch._foreach_mul_(chunk.scaled, factor)
            self._rule.update(chunk.seen, pace)
            if chunk.stored_slots:
                torch._foreach_copy_(chunk.stored_slots, chunk.wide_slots)
            if chunk.weights:
                torch._foreach_copy_(chunk.weights, chunk.masters)
            torch._foreach_zero_(chunk.summed)


def scratch_for(shards: Sequence[FlatShard]) -> Tensor:
    """Return scratch memory for a chunk of any of these shards: one float32 row for each vector that is converted."""
    rows = max((len(_narrow(shard)) for shard in shards), default=0)
    used = min(sum(len(shard.master) for shard in shards), _most(shards)) if rows else 0
    return torch.empty((rows, used), dtype=torch.float32, device=shards[0].master.device if shards else None)


def _most(shards: Sequence[FlatShard]) -> int:
    if all(shard.master.device.type == "cpu" for shard in shards):
        return CPU_CHUNK
    return SCRATCH_CHUNK if any(map(_narrow, shards)) else max(1, sum(len(shard.master) for shard in shards))


def _narrow(shard: FlatShard) -> list[Tensor]:
    """Return gradients and slots of a shard that are stored in a narrower type than the master."""
    return [vector for vector in (shard.gradients, *shard.slots.values()) if vector.dtype != shard.master.dtype]


def _widened(part: FlatShard, rows: Tensor) -> FlatShard:
    """Return a shard in which each vector narrower than the master is replaced by a row of scratch memory."""
    free = iter(rows)
    gradients, *slots = (
        vector if vector.dtype == part.master.dtype else next(free) for vector in (part.gradients, *part.slots.values())
    )
    return replace(part, gradients=gradients, slots=dict(zip(part.slots, slots, strict=True)))


def _chunk(stored: Sequence[FlatShard], seen: Sequence[FlatShard]) -> _Chunk:
    gradients = [
        (own.gradients, view.gradients)
        for own, view in zip(stored, seen, strict=True)
        if own.gradients is not view.gradients
    ]
    slots = [
        (own.slots[name], view.slots[name])
        for own, view in zip(stored, seen, strict=True)
        for name in own.slots
        if own.slots[name] is not view.slots[name]
    ]
    separate = [shard for shard in stored if shard.separate]
    return _Chunk(
        seen=seen,
        scaled=[shard.gradients for shard in seen],
        stored=[own for own, _ in (*gradients, *slots)],
        wide=[view for _, view in (*gradients, *slots)],
        stored_slots=[own for own, _ in slots],
        wide_slots=[view for _, view in slots],
        weights=[shard.weights for shard in separate],
        masters=[shard.master for shard in separate],
        summed=[shard.gradients for shard in stored],
    )
