"""The order in which each pipeline rank computes: GPipe, 1F1B, interleaved 1F1B, and forward only.

A schedule is data about computation alone; `lowering` adds the communication. Whatever the schedule, each stage runs
its forward passes, and its backward passes, in the order of the micro-batches 0, 1, 2, ...: gradients are accumulated
in the same order in every layout, so that layouts differ by nothing but the rounding of the collectives.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol, final

from scaling.core.errors import LayoutError
from scaling.core.pipeline.actions import Backward, Compute, Forward, stage_of


class Schedule(Protocol):
    """Who computes what in which order, for any rank, without a process group."""

    @property
    def chunks(self) -> int:
        """Return the number of stages on each rank."""

    def compute(self, rank: int, ranks: int, micro_batches: int) -> Iterator[Compute]:
        """Yield what pipe rank `rank` of `ranks` computes in one step, in order."""


@final
@dataclass(frozen=True)
class GPipe:
    """All forward passes, then all backward passes. Keeps the activations of every micro-batch."""

    chunks: int = field(default=1, init=False)

    def compute(self, rank: int, ranks: int, micro_batches: int) -> Iterator[Compute]:
        """Yield what `rank` computes in one step, in order."""
        _check(self.chunks, rank, ranks, micro_batches)
        yield from (Forward(micro_batch, rank) for micro_batch in range(micro_batches))
        yield from (Backward(micro_batch, rank) for micro_batch in range(micro_batches))


@final
@dataclass(frozen=True)
class OneFOneB:
    """One forward, one backward: as short as GPipe, but rank r keeps only ranks - r micro-batches alive."""

    chunks: int = field(default=1, init=False)

    def compute(self, rank: int, ranks: int, micro_batches: int) -> Iterator[Compute]:
        """Yield what `rank` computes in one step, in order."""
        _check(self.chunks, rank, ranks, micro_batches)
        forwards = (Forward(micro_batch, rank) for micro_batch in range(micro_batches))
        backwards = (Backward(micro_batch, rank) for micro_batch in range(micro_batches))
        yield from _one_by_one(ranks - 1 - rank, forwards, backwards)


@final
@dataclass(frozen=True)
class Interleaved1F1B:
    """1F1B with several smaller stages per rank: the bubble shrinks by their number, communication grows by it.

    Micro-batches go through a rank in rounds of `ranks`: a round passes chunk 0, then the same round chunk 1, ...
    """

    chunks: int

    def compute(self, rank: int, ranks: int, micro_batches: int) -> Iterator[Compute]:
        """Yield what `rank` computes in one step, in order."""
        _check(self.chunks, rank, ranks, micro_batches)
        if micro_batches % ranks:
            raise LayoutError(
                f"the interleaved schedule needs a number of micro-batches that pipe_parallel_size divides, but "
                f"gradient_accumulation_steps is {micro_batches} and pipe_parallel_size {ranks}; set "
                f"gradient_accumulation_steps to {max(1, micro_batches // ranks) * ranks}, or pipe_schedule to 1f1b"
            )
        chunks = range(self.chunks)
        forwards = (Forward(*at) for at in _rounds(chunks, rank, ranks, micro_batches))
        backwards = (Backward(*at) for at in _rounds(chunks[::-1], rank, ranks, micro_batches))
        yield from _one_by_one(2 * (ranks - 1 - rank) + (self.chunks - 1) * ranks, forwards, backwards)


@final
@dataclass(frozen=True)
class ForwardOnly:
    """Forward passes alone, for evaluation. Takes any number of micro-batches with any number of chunks."""

    chunks: int = 1

    def compute(self, rank: int, ranks: int, micro_batches: int) -> Iterator[Compute]:
        """Yield what `rank` computes in one evaluation step, in order."""
        _check(self.chunks, rank, ranks, micro_batches)
        yield from (Forward(*at) for at in _rounds(range(self.chunks), rank, ranks, micro_batches))


def _rounds(chunks: range, rank: int, ranks: int, micro_batches: int) -> Iterator[tuple[int, int]]:
    """Yield (micro-batch, stage): every round of `ranks` micro-batches through all `chunks` of this rank in turn."""
    for first in range(0, micro_batches, ranks):
        for chunk in chunks:
            for micro_batch in range(first, min(first + ranks, micro_batches)):
                yield micro_batch, stage_of(rank, chunk, ranks)


def _one_by_one(warm_up: int, forwards: Iterator[Forward], backwards: Iterator[Backward]) -> Iterator[Compute]:
    """Yield `warm_up` forwards, then one forward and one backward in turn, then the backwards that are left."""
    yield from islice(forwards, warm_up)
    for forward in forwards:
        yield forward
        yield next(backwards)
    yield from backwards


def _check(chunks: int, rank: int, ranks: int, micro_batches: int) -> None:
    """Refuse numbers for which there is no schedule."""
    if chunks < 1:
        raise LayoutError(f"a pipeline rank needs at least 1 stage, not {chunks}")
    if micro_batches < 1:
        raise LayoutError(
            f"a step needs at least 1 micro-batch, not {micro_batches}; check gradient_accumulation_steps"
        )
    if not 0 <= rank < ranks:
        raise LayoutError(f"pipe rank {rank} is outside the pipeline of {ranks} ranks (0 to {ranks - 1})")
