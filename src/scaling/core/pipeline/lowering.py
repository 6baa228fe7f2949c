"""Turn the compute order of a schedule into the full list of actions: insert sends and receives."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from scaling.core.errors import ScheduleError
from scaling.core.pipeline.actions import (
    Action,
    Channel,
    Compute,
    Message,
    consumed,
    earlier,
    produced,
)
from scaling.core.pipeline.schedules import Schedule
from scaling.core.pipeline.stage_map import StageMap


def lower(schedule: Schedule, rank: int, ranks: int, micro_batches: int) -> tuple[Action, ...]:
    """Return everything pipe rank `rank` does in one step, in order.

    A send comes right after the computation that produces the message, a receive right before the computation that
    consumes it, or earlier if its channel delivers it earlier: a channel's messages are always received in the order
    they are sent. Neighbouring stages on one rank exchange no messages.
    """
    stages = schedule.stages.over(ranks)
    arriving: dict[Channel, deque[Message]] = {}
    for neighbour in _neighbours(stages, rank):
        for compute in _compute_order(schedule, neighbour, ranks, micro_batches):
            if (message := produced(compute, stages)) and stages.rank_of(message.target) == rank:
                arriving.setdefault(message.channel(stages), deque()).append(message)

    actions: list[Action] = []
    received: set[Message] = set()
    for compute in _compute_order(schedule, rank, ranks, micro_batches):
        if (needed := consumed(compute, stages)) and stages.rank_of(needed.source) != rank:
            inbox = arriving.get(needed.channel(stages), deque())
            while needed not in received:
                if not inbox:
                    raise ScheduleError(f"rank {rank} needs {needed} for {compute}, but the schedule never produces it")
                actions.append(inbox[0].received())
                received.add(inbox.popleft())
        actions.append(compute)
        if (message := produced(compute, stages)) and stages.rank_of(message.target) != rank:
            actions.append(message.sent())
    for message in (message for inbox in arriving.values() for message in inbox):
        raise ScheduleError(f"the schedule produces {message} for rank {rank}, which never uses it")
    return tuple(actions)


def lower_all(schedule: Schedule, ranks: int, micro_batches: int) -> tuple[tuple[Action, ...], ...]:
    """Return the actions of every pipe rank, as `simulate` accepts them."""
    return tuple(lower(schedule, rank, ranks, micro_batches) for rank in range(ranks))


def _neighbours(stages: StageMap, rank: int) -> list[int]:
    """Return the other ranks that hold a stage beside one of this rank's, in the ring of stages."""
    beside = {other % len(stages) for stage in stages.stages_of(rank) for other in (stage - 1, stage + 1)}
    return sorted({stages.rank_of(stage) for stage in beside} - {rank})


def _compute_order(schedule: Schedule, rank: int, ranks: int, micro_batches: int) -> Sequence[Compute]:
    """Return the schedule's order, refusing stages of other ranks, repetitions, and computations that are too early."""
    own = schedule.stages.over(ranks).stages_of(rank)
    order: dict[Compute, None] = {}
    for compute in schedule.compute(rank, ranks, micro_batches):
        if compute.stage not in own:
            raise ScheduleError(f"the schedule lets rank {rank} compute {compute}, a stage that is not on that rank")
        if compute in order:
            raise ScheduleError(f"the schedule lets rank {rank} compute {compute} twice")
        if (first := earlier(compute)) and first not in order:
            raise ScheduleError(f"the schedule lets rank {rank} compute {compute} before {first}")
        order[compute] = None
    return tuple(order)
