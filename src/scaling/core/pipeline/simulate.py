"""Execute the action lists of all pipe ranks in virtual time: a proof that they fit together, and what they cost."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import final

from scaling.core.errors import ScheduleError
from scaling.core.pipeline.actions import (
    Accept,
    Action,
    Backward,
    BackwardInput,
    BackwardWeight,
    Channel,
    Choose,
    Compute,
    Forward,
    Message,
    Recv,
    Send,
    consumed,
    earlier,
    produced,
)
from scaling.core.pipeline.stage_map import StageMap

Duration = Callable[[Action], float]
"""How long an action takes: a computation, or for a `Send` the message's time on the wire. Never asked for a `Recv`."""


@dataclass(frozen=True)
class Event:
    """One action of one rank in time. A receive lasts as long as the rank waits."""

    rank: int
    action: Action
    start: float
    end: float


@dataclass(frozen=True)
class Simulation:
    """The cost of one step. Times are in the unit of the durations."""

    stages: StageMap
    events: tuple[Event, ...]
    """Every action, by rank and then in the rank's order."""
    makespan: float
    """From the start of the first action to the end of the last."""
    idle: tuple[float, ...]
    """Per rank: the time in which it computes nothing."""
    peak_activations: tuple[int, ...]
    """Per stage: the largest number of micro-batches between their forward and the end of their backward."""
    peak_activations_of_rank: tuple[int, ...]
    """Per rank: the same over all its stages together, in (micro-batch, stage) pairs."""

    @property
    def bubble(self) -> float:
        """Return the fraction of all ranks' time in which nothing is computed."""
        return sum(self.idle) / (self.makespan * len(self.idle)) if self.makespan else 0.0


def usual_duration(action: Action) -> float:
    """Return 1 for a forward pass and for half a backward pass, 2 for a whole one, 0 for tokens and communication."""
    match action:
        case Forward() | BackwardInput() | BackwardWeight():
            return 1.0
        case Backward():
            return 2.0
        case _:
            return 0.0


def simulate(
    actions: Sequence[Sequence[Action]], *, duration: Duration = usual_duration, rendezvous: bool = False
) -> Simulation:
    """Run the `actions[rank]` of all ranks against each other. A stage lives where its forward passes run.

    Every channel delivers in order. A send returns at once and its message waits for the receiver: the engine works in
    the same way, so that every schedule is free of deadlock. With `rendezvous` a send lasts until its receive, as on
    channels without buffers. Only GPipe, forward passes with one stage per rank, and a token ring of at most half as
    many groups as ranks (rounded up) then finish. With 1F1B, a rank sends an activation down while its neighbour sends
    a gradient up; with several stages per rank, or more groups, all ranks send around the ring at once, and none comes
    to a receive.

    Raises `ScheduleError` where ranks wait for each other for ever, a message meets another message's receive or none,
    a computation lacks its input, or a stage leaves out a micro-batch.
    """
    world = _World(actions, duration, rendezvous)
    world.run()
    makespan = max(world.clock, default=0.0)
    computing = [0.0] * len(actions)
    for event in (event for own in world.events for event in own):
        if isinstance(event.action, Compute):
            computing[event.rank] += event.end - event.start
    return Simulation(
        stages=world.stages,
        events=tuple(event for own in world.events for event in own),
        makespan=makespan,
        idle=tuple(makespan - time for time in computing),
        peak_activations=_peak_per_stage(actions),
        peak_activations_of_rank=tuple(_peak(own) for own in actions),
    )


def _peak(actions: Sequence[Action]) -> int:
    """Count how many (micro-batch, stage) pairs are alive at once, at most. Without a backward pass none is kept."""
    kept = {(a.micro_batch, a.stage) for a in actions if isinstance(a, (Backward, BackwardWeight))}
    live = highest = 0
    for action in actions:
        match action:
            case Forward():
                highest = max(highest, live + 1)
                live += (action.micro_batch, action.stage) in kept
            case Backward() | BackwardWeight():
                live -= 1
    return highest


def _peak_per_stage(actions: Sequence[Sequence[Action]]) -> tuple[int, ...]:
    """Count live micro-batches stage by stage."""
    of_stage: dict[int, list[Action]] = {}
    for action in (action for own in actions for action in own if isinstance(action, Compute)):
        of_stage.setdefault(action.stage, []).append(action)
    return tuple(_peak(of_stage[stage]) for stage in sorted(of_stage))


@final
class _World:
    """The state of all ranks: how far each has come, its clock, the messages it holds, and those under way."""

    def __init__(self, actions: Sequence[Sequence[Action]], duration: Duration, rendezvous: bool) -> None:
        self.actions = actions
        self.stages = _stages_of(actions)
        self.duration = duration
        self.rendezvous = rendezvous
        self.position = [0] * len(actions)
        self.clock = [0.0] * len(actions)
        self.ready = deque(range(len(actions)))
        self.held: list[set[Message]] = [set() for _ in actions]
        """Per rank: messages that its stages have made or received and not used yet."""
        self.wire: dict[Channel, deque[tuple[Message, float]]] = {}
        """Per channel: messages sent and not yet received, with the times of arrival (rendezvous: of the offer)."""
        self.offering: set[int] = set()
        """Ranks inside a rendezvous send."""
        self.events: list[list[Event]] = [[] for _ in actions]

    def run(self) -> None:
        """Let every rank go as far as it can, again and again, until all have finished or none can move."""
        while self.ready:
            rank = self.ready.popleft()
            while self.position[rank] < len(self.actions[rank]) and self.advance(rank):
                pass
        self.check_finished()

    def advance(self, rank: int) -> bool:
        """Carry out the next action of `rank`, and return whether it could."""
        action = self.actions[rank][self.position[rank]]
        match action:
            case Compute():
                self.compute(rank, action)
                return True
            case Send():
                return self.send(rank, action)
            case Recv():
                return self.receive(rank, action)

    def compute(self, rank: int, action: Compute) -> None:
        """Use up the message that a computation consumes, and hold the one it produces."""
        if self.stages.rank_of(action.stage) != rank:
            raise ScheduleError(f"rank {rank} computes {action}, a stage that is not on that rank")
        if needed := consumed(action, self.stages):
            self.take(rank, needed, action)
        if made := produced(action, self.stages):
            self.held[rank].add(made)
        self.finish(rank, self.clock[rank] + self.duration(action))

    def send(self, rank: int, action: Send) -> bool:
        """Put a message on its channel; in a rendezvous the receiver ends the send."""
        if rank in self.offering:
            return False
        message = action.message()
        channel = message.channel(self.stages)
        if channel.source_rank != rank:
            raise ScheduleError(f"rank {rank} sends {message}, whose source is on rank {channel.source_rank}")
        self.take(rank, message, action)
        arrival = self.clock[rank] + (0.0 if self.rendezvous else self.duration(action))
        self.wire.setdefault(channel, deque()).append((message, arrival))
        self.ready.append(channel.target_rank)
        if self.rendezvous:
            self.offering.add(rank)
            return False
        self.finish(rank, self.clock[rank])
        return True

    def receive(self, rank: int, action: Recv) -> bool:
        """Take the next message from its channel, if there is one; it has to be the one that is expected."""
        message = action.message()
        channel = message.channel(self.stages)
        if channel.target_rank != rank:
            raise ScheduleError(f"rank {rank} receives {message}, whose target is on rank {channel.target_rank}")
        if not self.wire.get(channel):
            return False
        arrived, time = self.wire[channel].popleft()
        if arrived != message:
            raise ScheduleError(f"rank {rank} receives {message}, but the next message on its channel is {arrived}")
        end = max(self.clock[rank], time)
        if self.rendezvous:
            end += self.duration(message.sent())
            self.offering.remove(channel.source_rank)
            self.finish(channel.source_rank, end)
            self.ready.append(channel.source_rank)
        self.held[rank].add(message)
        self.finish(rank, end)
        return True

    def take(self, rank: int, message: Message, action: Action) -> None:
        """Remove `message` from those that `rank` holds."""
        if message not in self.held[rank]:
            raise ScheduleError(f"rank {rank} comes to {action} without having {message}")
        self.held[rank].remove(message)

    def finish(self, rank: int, end: float) -> None:
        """End the current action of `rank` at time `end`."""
        action = self.actions[rank][self.position[rank]]
        self.events[rank].append(Event(rank, action, self.clock[rank], end))
        self.clock[rank] = end
        self.position[rank] += 1

    def check_finished(self) -> None:
        """Raise unless every rank has come to its end. No message is left over then: its computation would lack it."""
        stuck = [rank for rank, own in enumerate(self.actions) if self.position[rank] < len(own)]
        if stuck:
            where = "; ".join(f"rank {rank} at {self.actions[rank][self.position[rank]]}" for rank in stuck)
            raise ScheduleError(f"deadlock: {where}")


def _stages_of(actions: Sequence[Sequence[Action]]) -> StageMap:
    """Return where the stages live, after a check that each runs every micro-batch once, forward before backward."""
    counts: Counter[Compute] = Counter()
    homes: dict[int, int] = {}
    for rank, own in enumerate(actions):
        for action in (action for action in own if isinstance(action, Compute)):
            if (first := earlier(action)) and first not in counts:
                raise ScheduleError(f"{action} comes before {first}")
            if isinstance(action, Choose) and (late := Accept(action.micro_batch, action.stage)) in counts:
                raise ScheduleError(f"{late} comes before {action}")
            counts[action] += 1
            if isinstance(action, Forward):
                homes[action.stage] = rank
    micro_batches = sorted({compute.micro_batch for compute in counts})
    trains = any(isinstance(compute, (Backward, BackwardInput, BackwardWeight)) for compute in counts)
    chooses = any(isinstance(compute, (Choose, Accept)) for compute in counts)
    last = max(homes, default=-1)
    for at in product(micro_batches, range(1 + last)):
        whole, halves = Backward(*at), (BackwardInput(*at), BackwardWeight(*at))
        divided = any(half in counts for half in halves)
        if divided and whole in counts:
            raise ScheduleError(f"{whole} happens beside its halves; it has to happen once")
        backwards: tuple[Compute, ...] = (halves if divided else (whole,)) if trains else ()
        tokens: tuple[Compute, ...] = ((Choose(*at),) if at[1] == last else ()) + (Accept(*at),) if chooses else ()
        for compute in (Forward(*at), *backwards, *tokens):
            if counts[compute] != 1:
                raise ScheduleError(f"{compute} happens {counts[compute]} times in a step; it has to happen once")
        if at[1] < last and (stray := Choose(*at)) in counts:
            raise ScheduleError(f"{stray} happens on a stage before the last, stage {last}, which chooses the tokens")
    return StageMap(tuple(homes[stage] for stage in range(len(homes))))
