"""Generation as a schedule: groups of rows go around the ring of stages, one token further each time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import final

from scaling.core.errors import LayoutError
from scaling.core.pipeline.actions import Accept, Action, Choose, Compute, Forward, consumed, produced
from scaling.core.pipeline.lowering import lower_all
from scaling.core.pipeline.schedules import check_numbers
from scaling.core.pipeline.simulate import Duration, simulate, usual_duration
from scaling.core.pipeline.stage_map import ONE_EACH, InTurn


@final
@dataclass(frozen=True)
class TokenRing:
    """The schedule of generation: micro-batch m continues group m % groups, after the tokens of micro-batch m - groups.

    The next token of a row depends on the one before, so a group is on one rank at a time. As many groups as ranks keep
    all ranks computing; one group leaves all ranks but one idle. `simulate` proves it.
    """

    groups: int
    stages: InTurn = field(default=ONE_EACH, init=False)

    def __post_init__(self) -> None:
        if self.groups < 1:
            raise LayoutError(f"a ring needs at least 1 group of rows, not {self.groups}")

    def compute(self, rank: int, ranks: int, micro_batches: int) -> Iterator[Compute]:
        """Yield what `rank` computes, in order, until the tokens of all `micro_batches` are taken in."""
        check_numbers(rank, ranks, micro_batches)
        for micro_batch in range(micro_batches + self.groups):
            for compute in self._compute_of(rank, ranks, micro_batch):
                if compute.micro_batch < micro_batches:
                    yield compute

    def actions(self, rank: int, ranks: int, micro_batch: int) -> tuple[Action, ...]:
        """Return the actions of `rank` when it comes to a micro-batch: a slice of the list that `lower` returns.

        So a loop of unknown length needs no list. It ends as a list does, with `groups` further micro-batches of which
        only the actions for earlier micro-batches are carried out.
        """
        stages = self.stages.over(ranks)
        actions: list[Action] = []
        for compute in self._compute_of(rank, ranks, micro_batch):
            if needed := consumed(compute, stages):  # one stage per rank: neighbours are other ranks
                actions.append(needed.received())
            actions.append(compute)
            if made := produced(compute, stages):
                actions.append(made.sent())
        return tuple(actions)

    def _compute_of(self, rank: int, ranks: int, micro_batch: int) -> Iterator[Compute]:
        if micro_batch >= self.groups:
            yield Accept(micro_batch - self.groups, rank)
        yield Forward(micro_batch, rank)
        if rank == ranks - 1:
            yield Choose(micro_batch, rank)


_ROUNDS = (3, 7)
"""The tokens of each row after which the pipeline is full, and those that are enough to measure it."""


def rounds_per_time(ranks: int, groups: int, duration: Duration = usual_duration) -> float:
    """Return how many tokens each row gets per unit of time, once the pipeline is full, by the simulator."""
    filled, longer = (
        simulate(lower_all(TokenRing(groups), ranks, rounds * groups), duration=duration).makespan for rounds in _ROUNDS
    )
    return (_ROUNDS[1] - _ROUNDS[0]) / (longer - filled)


def predicted_gain(ranks: int, groups: int, *, part: float | None = None) -> float:
    """Return the ratio of the tokens per time with `groups` groups to those with one group of all rows.

    `part` is how long a stage takes for the rows of one group, in units of its time for all rows: 1 / groups (None)
    where the time is proportional to the number of rows, 1 where reading the weights takes all of it.
    """
    part = 1 / groups if part is None else part
    return rounds_per_time(ranks, groups, lambda action: part * usual_duration(action)) / rounds_per_time(ranks, 1)
