"""Schedules that the library does not have: what they need must be there all the same."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from scaling.core.pipeline.actions import Backward, BackwardInput, BackwardWeight, Compute, Forward
from scaling.core.pipeline.stage_map import ONE_EACH, StageMap, StagePlacement


@dataclass(frozen=True)
class VShaped:
    """Down the ranks and up again: rank r has stages r and 2 * ranks - 1 - r, so rank 0 has the first and the last."""

    def over(self, ranks: int) -> StageMap:
        return StageMap((*range(ranks), *reversed(range(ranks))))


@dataclass(frozen=True)
class VGPipe:
    """All forward passes down the V, then all backward passes up."""

    stages: StagePlacement = VShaped()

    def compute(self, rank: int, ranks: int, micro_batches: int) -> Iterator[Compute]:
        down, up = self.stages.over(ranks).stages_of(rank)
        yield from (Forward(micro_batch, stage) for stage in (down, up) for micro_batch in range(micro_batches))
        yield from (Backward(micro_batch, stage) for stage in (up, down) for micro_batch in range(micro_batches))


@dataclass(frozen=True)
class ZeroBubble:
    """1F1B with divided backward passes: rank r puts off the halves that nobody waits for by r micro-batches.

    They fill the end of the step, in which 1F1B is idle (ZB-H1 of arXiv:2401.10241).
    """

    stages: StagePlacement = ONE_EACH

    def compute(self, rank: int, ranks: int, micro_batches: int) -> Iterator[Compute]:
        ahead = min(ranks - 1 - rank, micro_batches)
        yield from (Forward(micro_batch, rank) for micro_batch in range(ahead))
        for micro_batch in range(micro_batches):
            if micro_batch + ahead < micro_batches:
                yield Forward(micro_batch + ahead, rank)
            yield BackwardInput(micro_batch, rank)
            if micro_batch >= rank:
                yield BackwardWeight(micro_batch - rank, rank)
        yield from (BackwardWeight(left, rank) for left in range(max(micro_batches - rank, 0), micro_batches))
