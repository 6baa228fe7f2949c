"""Lowering: sends and receives around the computations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hypothesis import given

from scaling.core.errors import ScheduleError
from scaling.core.pipeline.actions import (
    Action,
    Backward,
    BackwardInput,
    BackwardWeight,
    Compute,
    Forward,
    Message,
    Recv,
    Send,
    consumed,
    produced,
)
from scaling.core.pipeline.lowering import lower, lower_all
from scaling.core.pipeline.schedules import ForwardOnly, GPipe, Interleaved1F1B, OneFOneB, Schedule
from scaling.core.pipeline.simulate import simulate
from scaling.core.pipeline.stage_map import ONE_EACH, InTurn, StagePlacement
from tests.core.pipeline.strategies import configurations
from tests.core.pipeline.toy_schedules import VGPipe, VShaped, ZeroBubble


@dataclass(frozen=True)
class Scripted:
    """A schedule written out rank by rank."""

    orders: tuple[tuple[Compute, ...], ...]
    stages: StagePlacement = ONE_EACH

    def compute(self, rank: int, ranks: int, micro_batches: int) -> Iterator[Compute]:
        return iter(self.orders[rank])


def messages(actions: tuple[Action, ...], end: type[Send] | type[Recv]) -> list[Message]:
    return [action.message() for action in actions if isinstance(action, end)]


@given(configurations())
def test_every_channel_is_received_in_the_order_it_is_sent(configuration: tuple[Schedule, int, int]) -> None:
    schedule, ranks, micro_batches = configuration
    actions, stages = lower_all(schedule, ranks, micro_batches), schedule.stages.over(ranks)
    sent = [message for own in actions for message in messages(own, Send)]
    received = [message for own in actions for message in messages(own, Recv)]
    assert len(sent) == len(set(sent))
    for channel in {message.channel(stages) for message in sent + received}:
        assert channel.source_rank != channel.target_rank
        assert [one for one in sent if one.channel(stages) == channel] == [
            one for one in received if one.channel(stages) == channel
        ]


@given(configurations())
def test_the_schedules_need_no_early_receive(configuration: tuple[Schedule, int, int]) -> None:
    schedule, ranks, micro_batches = configuration
    stages = schedule.stages.over(ranks)
    for own in lower_all(schedule, ranks, micro_batches):
        for before, action, after in zip((None, *own), own, (*own[1:], None), strict=False):
            if isinstance(action, Recv):
                assert isinstance(after, Compute)
                assert consumed(after, stages) == action.message()
            if isinstance(action, Send):
                assert isinstance(before, Compute)
                assert produced(before, stages) == action.message()


@given(configurations())
def test_computations_keep_their_order(configuration: tuple[Schedule, int, int]) -> None:
    schedule, ranks, micro_batches = configuration
    for rank, own in enumerate(lower_all(schedule, ranks, micro_batches)):
        computed = [action for action in own if isinstance(action, Compute)]
        assert computed == list(schedule.compute(rank, ranks, micro_batches))


def test_first_and_last_rank_of_one_f_one_b() -> None:
    assert lower(OneFOneB(), 0, 2, 1) == (
        Forward(0, 0),
        Send(0, 0, 1, "activation"),
        Recv(0, 1, 0, "gradient"),
        Backward(0, 0),
    )
    assert lower(OneFOneB(), 1, 2, 1) == (
        Recv(0, 0, 1, "activation"),
        Forward(0, 1),
        Backward(0, 1),
        Send(0, 1, 0, "gradient"),
    )


def test_the_first_half_of_a_backward_pass_makes_the_message_and_waits_for_the_one_before() -> None:
    assert lower(ZeroBubble(), 0, 2, 1)[2:] == (
        Recv(0, 1, 0, "gradient"),
        BackwardInput(0, 0),
        BackwardWeight(0, 0),
    )
    assert lower(ZeroBubble(), 1, 2, 1)[1:] == (
        Forward(0, 1),
        BackwardInput(0, 1),
        Send(0, 1, 0, "gradient"),
        BackwardWeight(0, 1),
    )


@pytest.mark.parametrize("schedule", [GPipe(), OneFOneB(), Interleaved1F1B(3), ForwardOnly(InTurn(3))])
def test_one_rank_exchanges_nothing(schedule: Schedule) -> None:
    assert not [action for action in lower(schedule, 0, 1, 4) if isinstance(action, (Send, Recv))]


def test_stages_of_neighbouring_chunks_wrap_around_to_the_first_rank() -> None:
    activations = [message for message in messages(lower(ForwardOnly(InTurn(2)), 2, 3, 1), Send)]
    assert activations == [Message(0, 2, 3, "activation")]
    assert messages(lower(ForwardOnly(InTurn(2)), 0, 3, 1), Recv) == [Message(0, 2, 3, "activation")]


def test_a_schedule_may_have_its_stages_anywhere() -> None:
    """Stages 1 and 2 share a rank, and exchange nothing; stages 0 and 3 the other."""
    assert lower(ForwardOnly(VShaped()), 1, 2, 1) == (
        Recv(0, 0, 1, "activation"),
        Forward(0, 1),
        Forward(0, 2),
        Send(0, 2, 3, "activation"),
    )
    assert messages(lower(VGPipe(), 0, 2, 1), Send) == [Message(0, 0, 1, "activation"), Message(0, 3, 2, "gradient")]


def test_receives_move_forward_where_a_schedule_uses_messages_in_another_order() -> None:
    schedule = Scripted(((Forward(0, 0), Forward(1, 0)), (Forward(1, 1), Forward(0, 1))))
    actions = lower_all(schedule, 2, 2)
    assert actions[1] == (
        Recv(0, 0, 1, "activation"),
        Recv(1, 0, 1, "activation"),
        Forward(1, 1),
        Forward(0, 1),
    )
    simulate(actions)


@pytest.mark.parametrize(
    ("orders", "message"),
    [
        (((Forward(0, 1),), ()), r"rank 0 compute Forward\(micro_batch=0, stage=1\), a stage that is not on that rank"),
        (((Forward(0, 0), Forward(0, 0)), ()), r"rank 0 compute Forward\(.*\) twice"),
        (((Backward(0, 0),), ()), r"rank 0 compute Backward\(.*\) before Forward\(micro_batch=0, stage=0\)"),
        (
            ((Forward(0, 0), BackwardWeight(0, 0)), ()),
            r"rank 0 compute BackwardWeight\(.*\) before BackwardInput\(micro_batch=0, stage=0\)",
        ),
        (((), (Forward(0, 1),)), r"rank 1 needs Message\(.*\) for Forward\(.*\), but the schedule never produces it"),
        (((Forward(0, 0),), ()), r"produces Message\(.*\) for rank 1, which never uses it"),
    ],
)
def test_a_schedule_that_does_not_fit_together_is_refused(
    orders: tuple[tuple[Compute, ...], ...], message: str
) -> None:
    with pytest.raises(ScheduleError, match=message):
        lower_all(Scripted(orders), 2, 1)
