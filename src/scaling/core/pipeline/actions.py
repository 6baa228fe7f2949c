"""The actions of a pipeline rank: forward and backward passes, the choice of tokens, sends and receives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias, final

from scaling.core.pipeline.stage_map import StageMap

Payload: TypeAlias = Literal["activation", "gradient", "token"]


@dataclass(frozen=True)
class Compute:
    """A computation of one stage for one micro-batch."""

    letter: ClassVar[str]
    """Symbol of the action in drawings."""
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

    It can therefore fill time in which its rank would be idle (zero-bubble pipeline parallelism, arXiv:2401.10241).
    """

    letter = "W"


@final
@dataclass(frozen=True)
class Choose(Compute):
    """Draw the next token of each row, from the output of the last stage for a micro-batch."""

    letter = "C"


@final
@dataclass(frozen=True)
class Accept(Compute):
    """Take in the tokens that were chosen for a micro-batch: the next tokens of its rows depend on them."""

    letter = "A"


@dataclass(frozen=True)
class Channel:
    """A directed edge between two pipe ranks: its own communicator, which delivers in the order of the sends.

    Activations, gradients and tokens never share a channel, so that none waits for another.
    """

    source_rank: int
    target_rank: int
    payload: Payload


@dataclass(frozen=True)
class Message:
    """A value that stage `source` makes for its neighbour `target` in the ring, where the first stage follows the last.

    Activations go to stage + 1, gradients to stage - 1. Tokens go from the last stage, which chooses them, to stage 0
    and on from stage to stage, up to the one before the last.
    """

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
    """Hand a message to its channel, and continue at once."""

    letter: ClassVar[str] = "S"


@final
@dataclass(frozen=True)
class Recv(Message):
    """Wait for a message."""

    letter: ClassVar[str] = "R"


Action: TypeAlias = "Compute | Send | Recv"


def earlier(compute: Compute) -> Compute | None:
    """Return the computation that has to come before this one on the same stage; None if there is none."""
    match compute:
        case (
            Backward(micro_batch, stage)
            | BackwardInput(micro_batch, stage)
            | Choose(micro_batch, stage)
            | Accept(micro_batch, stage)
        ):
            return Forward(micro_batch, stage)
        case BackwardWeight(micro_batch, stage):
            return BackwardInput(micro_batch, stage)
    return None


def consumed(compute: Compute, stages: StageMap) -> Message | None:
    """Return the message that a computation takes from a neighbour in the ring of stages.

    None for the first stage's input, for the gradient of the loss, and where the last stage takes in tokens: it has
    chosen them.
    """
    stage = compute.stage
    match compute:
        case Forward() if stage > 0:
            return Message(compute.micro_batch, stage - 1, stage, "activation")
        case Backward() | BackwardInput() if stage < stages.last:
            return Message(compute.micro_batch, stage + 1, stage, "gradient")
        case Accept() if stage < stages.last:
            return Message(compute.micro_batch, stage - 1 if stage > 0 else stages.last, stage, "token")
    return None


def produced(compute: Compute, stages: StageMap) -> Message | None:
    """Return the message that a computation makes for a neighbour in the ring of stages; None if there is none."""
    stage = compute.stage
    match compute:
        case Forward() if stage < stages.last:
            return Message(compute.micro_batch, stage, stage + 1, "activation")
        case Backward() | BackwardInput() if stage > 0:
            return Message(compute.micro_batch, stage, stage - 1, "gradient")
        case Choose() if 0 < stage == stages.last:
            return Message(compute.micro_batch, stage, 0, "token")
        case Accept() if stage + 1 < stages.last:
            return Message(compute.micro_batch, stage, stage + 1, "token")
    return None
