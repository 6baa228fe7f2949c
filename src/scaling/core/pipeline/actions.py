"""What a pipeline rank does: forward passes, backward passes (whole or in two halves), sends and receives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias, final

from scaling.core.pipeline.stage_map import StageMap

Payload: TypeAlias = Literal["activation", "gradient"]


@dataclass(frozen=True)
class Compute:
    """Something that one stage computes for one micro-batch."""

    letter: ClassVar[str]
    """Stands for the action where it is drawn."""
    micro_batch: int
    stage: int


@final
@dataclass(frozen=True)
class Forward(Compute):
    """Run one stage on one micro-batch."""

    letter = "F"


@final
@dataclass(frozen=True)
class Backward(Compute):
    """Run the backward pass of one stage for one micro-batch."""

    letter = "B"


@final
@dataclass(frozen=True)
class BackwardInput(Compute):
    """Run the first half of a backward pass: the gradient of the stage's input, for which another stage waits."""

    letter = "I"


@final
@dataclass(frozen=True)
class BackwardWeight(Compute):
    """Run the second half of a backward pass: the gradients of the stage's parameters, for which nobody waits.

    So it can fill the time in which its rank would be idle (zero-bubble pipeline parallelism, arXiv:2401.10241).
    """

    letter = "W"


@dataclass(frozen=True)
class Channel:
    """A directed edge between two pipe ranks: its own communicator, which delivers in the order of the sends.

    Activations and gradients never share one, so that neither waits for the other.
    """

    source_rank: int
    target_rank: int
    payload: Payload


@dataclass(frozen=True)
class Message:
    """What stage `source` makes for its neighbour `target`: activations go to stage + 1, gradients to stage - 1."""

    micro_batch: int
    source: int
    target: int
    payload: Payload

    def channel(self, stages: StageMap) -> Channel:
        """Return the channel on which the message travels."""
        return Channel(stages.rank_of(self.source), stages.rank_of(self.target), self.payload)

    def sent(self) -> Send:
        """Return the action that sends the message."""
        return Send(self.micro_batch, self.source, self.target, self.payload)

    def received(self) -> Recv:
        """Return the action that receives the message."""
        return Recv(self.micro_batch, self.source, self.target, self.payload)

    def message(self) -> Message:
        """Return the message that an action sends or receives."""
        return Message(self.micro_batch, self.source, self.target, self.payload)


@final
@dataclass(frozen=True)
class Send(Message):
    """Hand a message to its channel, and go on at once."""

    letter: ClassVar[str] = "S"


@final
@dataclass(frozen=True)
class Recv(Message):
    """Wait for a message."""

    letter: ClassVar[str] = "R"


Action: TypeAlias = "Compute | Send | Recv"


def earlier(compute: Compute) -> Compute | None:
    """Return what the same stage must have computed before."""
    match compute:
        case Backward(micro_batch, stage) | BackwardInput(micro_batch, stage):
            return Forward(micro_batch, stage)
        case BackwardWeight(micro_batch, stage):
            return BackwardInput(micro_batch, stage)
    return None


def consumed(compute: Compute, stages: StageMap) -> Message | None:
    """Return what a computation takes from a neighbouring stage: nothing at the first stage's input and at the loss."""
    stage = compute.stage
    match compute:
        case Forward() if stage > 0:
            return Message(compute.micro_batch, stage - 1, stage, "activation")
        case Backward() | BackwardInput() if stage < stages.last:
            return Message(compute.micro_batch, stage + 1, stage, "gradient")
    return None


def produced(compute: Compute, stages: StageMap) -> Message | None:
    """Return what a computation makes for a neighbouring stage."""
    stage = compute.stage
    match compute:
        case Forward() if stage < stages.last:
            return Message(compute.micro_batch, stage, stage + 1, "activation")
        case Backward() | BackwardInput() if stage > 0:
            return Message(compute.micro_batch, stage, stage - 1, "gradient")
    return None
