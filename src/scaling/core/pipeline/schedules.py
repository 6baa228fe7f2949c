"""The order in which each pipeline rank computes: GPipe, 1F1B, interleaved 1F1B, and forward only.

A schedule says where its stages live and what each rank computes; `lowering` adds the communication. Whatever the
schedule, each stage runs its forward passes, and its backward passes, in the order of the micro-batches 0, 1, 2, ...:
gradients are accumulated in the same order in every layout, so that layouts differ by nothing but the rounding of the
collectives.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol, final

from scaling.core.errors import LayoutError
from scaling.core.pipeline.actions import Backward, Compute, Forward
from scaling.core.pipeline.stage_map import ONE_EACH, InTurn, StagePlacement


class Schedule(Protocol):
    """The computations of any rank, in order, without a process group."""

    @property
    def stages(self) -> StagePlacement:
        """Return where the stages live."""

    def compute(self, rank: int, ranks: int, micro_batches: int) -> Iterator[Compute]:
        """Yield what pipe rank `rank` of `ranks` computes in one step, in order."""


@final
@dataclass(frozen=True)
class GPipe:
    """All forward passes, then all backward passes. Keeps the activations of every micro-batch."""

    stages: InTurn = field(default=ONE_EACH, init=False)

    def compute(self, rank: int, ranks: int, micro_batches: int) -> Iterator[Compute]:
        """Yield what `rank` computes in one step, in order."""
        check_numbers(rank, ranks, micro_batches)
        yield from (Forward(micro_batch, rank) for micro_batch in range(micro_batches))
        yield from (Backward(micro_batch, rank) for micro_batch in range(micro_batches))


@final
@dataclass(frozen=True)
class OneFOneB:
    """One forward, one backward: as short as GPipe, but rank r keeps only ranks - r micro-batches alive."""

    stages: InTurn = field(default=ONE_EACH, init=False)

    def compute(self, rank: int, ranks: int, micro_batches: int) -> Iterator[Compute]:
        """Yield what `rank` computes in one step, in order."""
        check_numbers(rank, ranks, micro_batches)
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

    @property
    def stages(self) -> InTurn:
        """Return where the stages live."""
        return InTurn(self.chunks)

    def compute(self, rank: int, ranks: int, micro_batches: int) -> Iterator[Compute]:
        """Yield what `rank` computes in one step, in order."""
        check_numbers(rank, ranks, micro_batches)
        if micro_batches % ranks:
            raise LayoutError(
                f"the interleaved schedule needs a number of micro-batches that pipe_parallel_size divides, but "
                f"gradient_accumulation_steps is {micro_batches} and pipe_parallel_size {ranks}; set "
                f"gradient_accumulation_steps to {max(1, micro_batches // ranks) * ranks}, or pipe_schedule to 1f1b"
            )
        stages = self.stages.over(ranks).stages_of(rank)
        forwards = (Forward(*at) for at in _rounds(stages, ranks, micro_batches))
        backwards = (Backward(*at) for at in _rounds(stages[::-1], ranks, micro_batches))
        yield from _one_by_one(2 * (ranks - 1 - rank) + (self.chunks - 1) * ranks, forwards, backwards)


@final
@dataclass(frozen=True)
class ForwardOnly:
    """Forward passes alone, for evaluation, wherever the stages live. Takes any number of micro-batches."""

    stages: StagePlacement = ONE_EACH

    def compute(self, rank: int, ranks: int, micro_batches: int) -> Iterator[Compute]:
        """Yield what `rank` computes in one evaluation step, in order."""
        check_numbers(rank, ranks, micro_batches)
        stages = self.stages.over(ranks).stages_of(rank)
        yield from (Forward(*at) for at in _rounds(stages, ranks, micro_batches))


def _rounds(stages: Sequence[int], size: int, micro_batches: int) -> Iterator[tuple[int, int]]:
    """Yield (micro-batch, stage): every round of `size` micro-batches through all `stages` of a rank in turn."""
    for first in range(0, micro_batches, size):
        for stage in stages:
            for micro_batch in range(first, min(first + size, micro_batches)):
                yield micro_batch, stage


def _one_by_one(warm_up: int, forwards: Iterator[Forward], backwards: Iterator[Backward]) -> Iterator[Compute]:
    """Yield `warm_up` forwards, then one forward and one backward in turn, then the backwards that are left."""
    yield from islice(forwards, warm_up)
    for forward in forwards:
        yield forward
        yield next(backwards)
    yield from backwards


def check_numbers(rank: int, ranks: int, micro_batches: int) -> None:
    """Refuse numbers for which there is no schedule."""
    if micro_batches < 1:
        raise LayoutError(
            f"a step needs at least 1 micro-batch, not {micro_batches}; check gradient_accumulation_steps"
        )
    if not 0 <= rank < ranks:
        raise LayoutError(f"pipe rank {rank} is outside the pipeline of {ranks} ranks (0 to {ranks - 1})")
