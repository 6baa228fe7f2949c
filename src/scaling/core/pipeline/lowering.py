"""Turn the compute order of a schedule into the full list of actions: insert sends and receives."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from scaling.core.errors import ScheduleError
from scaling.core.pipeline.actions import (
    Action,
    Backward,
    Channel,
    Compute,
    Forward,
    Message,
    consumed,
    produced,
    rank_of,
)
from scaling.core.pipeline.schedules import Schedule


def lower(schedule: Schedule, rank: int, ranks: int, micro_batches: int) -> tuple[Action, ...]:
    """Return everything pipe rank `rank` does in one step, in order.

    A send stands right behind the computation that produces the message, a receive right before the computation that
    consumes it, or earlier where its channel delivers it earlier: a channel's messages are always received in the order
    they are sent. Neighbouring stages on one rank exchange nothing.
    """
    stages = ranks * schedule.chunks
    arriving: dict[Channel, deque[Message]] = {}
    for neighbour in sorted({(rank - 1) % ranks, (rank + 1) % ranks} - {rank}):
        for compute in _compute_order(schedule, neighbour, ranks, micro_batches):
            if (message := produced(compute, stages)) and rank_of(message.target, ranks) == rank:
                arriving.setdefault(message.channel(ranks), deque()).append(message)

    actions: list[Action] = []
    received: set[Message] = set()
    for compute in _compute_order(schedule, rank, ranks, micro_batches):
        if (needed := consumed(compute, stages)) and rank_of(needed.source, ranks) != rank:
            inbox = arriving.get(needed.channel(ranks), deque())
            while needed not in received:
                if not inbox:
                    raise ScheduleError(f"rank {rank} needs {needed} for {compute}, but the schedule never produces it")
                actions.append(inbox[0].received())
                received.add(inbox.popleft())
        actions.append(compute)
        if (message := produced(compute, stages)) and rank_of(message.target, ranks) != rank:
            actions.append(message.sent())
    for message in (message for inbox in arriving.values() for message in inbox):
        raise ScheduleError(f"the schedule produces {message} for rank {rank}, which never uses it")
    return tuple(actions)


def lower_all(schedule: Schedule, ranks: int, micro_batches: int) -> tuple[tuple[Action, ...], ...]:
    """Return the actions of every pipe rank: what `simulate` takes."""
    return tuple(lower(schedule, rank, ranks, micro_batches) for rank in range(ranks))


def _compute_order(schedule: Schedule, rank: int, ranks: int, micro_batches: int) -> Sequence[Compute]:
    """Return the schedule's order, refusing stages of other ranks, repetitions, and a backward before its forward."""
    order: dict[Compute, None] = {}
    for compute in schedule.compute(rank, ranks, micro_batches):
        if not 0 <= compute.stage < ranks * schedule.chunks or rank_of(compute.stage, ranks) != rank:
            raise ScheduleError(f"the schedule lets rank {rank} compute {compute}, a stage that is not on that rank")
        if compute in order:
            raise ScheduleError(f"the schedule lets rank {rank} compute {compute} twice")
        if isinstance(compute, Backward) and Forward(compute.micro_batch, compute.stage) not in order:
            raise ScheduleError(f"the schedule lets rank {rank} compute {compute} before its forward pass")
        order[compute] = None
    return tuple(order)
