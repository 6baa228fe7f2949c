"""Schedules that the library does not have: what they need must be there all the same."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from scaling.core.pipeline.actions import Backward, Compute, Forward
from scaling.core.pipeline.stage_map import StageMap, StagePlacement


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
