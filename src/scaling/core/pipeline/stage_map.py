"""Where the stages of a pipeline live: on which pipe rank, and which of its chunks each of them is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, final

from scaling.core.errors import LayoutError


@final
@dataclass(frozen=True)
class StageMap:
    """The pipe rank of every stage. Plain data, the same on all ranks."""

    ranks: tuple[int, ...]
    """Pipe ranks, by stage."""

    def __len__(self) -> int:
        return len(self.ranks)

    @property
    def last(self) -> int:
        """Return the stage with the last layer."""
        return len(self.ranks) - 1

    def rank_of(self, stage: int) -> int:
        """Return the pipe rank on which a stage lives."""
        return self.ranks[stage]

    def stages_of(self, rank: int) -> tuple[int, ...]:
        """Return the stages of a pipe rank, in the order of the layers: its chunks 0, 1, ..."""
        return tuple(stage for stage, home in enumerate(self.ranks) if home == rank)

    def chunk_of(self, stage: int) -> int:
        """Return which of its rank's stages this is, counted from 0."""
        return self.ranks[:stage].count(self.ranks[stage])


class StagePlacement(Protocol):
    """A rule that says, for any number of pipe ranks, where the stages live."""

    def over(self, ranks: int) -> StageMap:
        """Return the map for a pipeline of `ranks` ranks, each of which has at least one stage."""


@final
@dataclass(frozen=True)
class InTurn:
    """Stages are dealt to the ranks in turn, `chunks` to each: stage s is chunk s // ranks of rank s % ranks."""

    chunks: int = 1

    def over(self, ranks: int) -> StageMap:
        """Return the map for a pipeline of `ranks` ranks."""
        if self.chunks < 1:
            raise LayoutError(f"a pipeline rank needs at least 1 stage, not {self.chunks}")
        return StageMap(tuple(range(ranks)) * self.chunks)


ONE_EACH = InTurn()
"""One stage on each rank, in order."""
