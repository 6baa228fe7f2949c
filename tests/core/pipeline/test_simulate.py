"""The simulator: proofs over a grid of configurations, and what it refuses."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise, product

import pytest

from scaling.core.errors import ScheduleError
from scaling.core.pipeline.actions import Action, Backward, BackwardInput, BackwardWeight, Forward, Recv, Send
from scaling.core.pipeline.lowering import lower_all
from scaling.core.pipeline.schedules import ForwardOnly, GPipe, Interleaved1F1B, OneFOneB, Schedule
from scaling.core.pipeline.simulate import simulate
from scaling.core.pipeline.stage_map import InTurn

Configuration = tuple[Schedule, int, int]

GRID: list[Configuration] = [
    *((schedule, ranks, m) for schedule in (GPipe(), OneFOneB()) for ranks in range(1, 9) for m in (1, 2, 3, 5, 8, 16)),
    *((Interleaved1F1B(v), ranks, ranks * k) for v in (1, 2, 3, 4) for ranks in range(1, 7) for k in (1, 2, 3, 4)),
    *((ForwardOnly(InTurn(v)), ranks, m) for v in (1, 2, 3) for ranks in (1, 2, 3, 4, 8) for m in (1, 2, 3, 5, 8)),
]


def forward_one_backward_three(action: Action) -> float:
    match action:
        case Forward():
            return 1.0
        case Backward():
            return 3.0
        case _:
            return 0.0


def check_bubble(schedule: Schedule, ranks: int, micro_batches: int) -> None:
    actions = lower_all(schedule, ranks, micro_batches)
    chunks = len(schedule.stages.over(ranks)) // ranks
    theory = Fraction(ranks - 1, micro_batches * chunks + ranks - 1)
    for simulation in (simulate(actions), simulate(actions, duration=forward_one_backward_three)):
        if isinstance(schedule, ForwardOnly) and chunks > 1 and micro_batches % ranks:
            assert theory < simulation.bubble < 1  # its last round is short, and waits once per chunk
        else:
            assert simulation.bubble == pytest.approx(float(theory), abs=1e-12), (schedule, ranks, micro_batches)


def test_the_grid_is_free_of_deadlock_and_its_bubbles_are_those_of_theory() -> None:
    assert len(GRID) >= 200
    for schedule, ranks, micro_batches in GRID:
        check_bubble(schedule, ranks, micro_batches)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", range(1, 17))
def test_a_large_grid_is_free_of_deadlock_too(ranks: int) -> None:
    for micro_batches in (*range(1, 17), 24, 32, 48, 64):
        for schedule in (GPipe(), OneFOneB(), ForwardOnly(), ForwardOnly(InTurn(2))):
            check_bubble(schedule, ranks, micro_batches)
        for chunks in range(1, 7) if micro_batches % ranks == 0 else ():
            check_bubble(Interleaved1F1B(chunks), ranks, micro_batches)


def test_peak_activations_are_those_of_theory() -> None:
    for schedule, ranks, m in GRID:
        simulation = simulate(lower_all(schedule, ranks, m))
        peaks = simulation.peak_activations_of_rank
        assert len(simulation.peak_activations) == len(schedule.stages.over(ranks))
        match schedule:
            case GPipe():
                assert peaks == (m,) * ranks
            case OneFOneB():
                assert peaks == tuple(min(m, ranks - rank) for rank in range(ranks))
            case Interleaved1F1B(chunks):
                warm_up = [2 * (ranks - 1 - rank) + (chunks - 1) * ranks for rank in range(ranks)]
                assert peaks == tuple(min(m * chunks, forwards + 1) for forwards in warm_up)
            case ForwardOnly():
                assert peaks == (1,) * ranks


@pytest.mark.parametrize("schedule", [GPipe(), OneFOneB(), Interleaved1F1B(2), ForwardOnly(InTurn(2))])
def test_actions_of_a_rank_follow_each_other_and_messages_arrive_after_they_are_sent(schedule: Schedule) -> None:
    ranks = 4
    actions = lower_all(schedule, ranks, 8)
    simulation = simulate(actions, duration=lambda action: 0.25 if isinstance(action, Send) else 1.0)
    for rank in range(ranks):
        own = [event for event in simulation.events if event.rank == rank]
        assert tuple(event.action for event in own) == actions[rank]
        assert all(before.end == after.start for before, after in pairwise(own))
    sent = {
        (event.action.micro_batch, event.action.source, event.action.target): event.end
        for event in simulation.events
        if isinstance(event.action, Send)
    }
    for event in simulation.events:
        if isinstance(event.action, Recv):
            at = sent[event.action.micro_batch, event.action.source, event.action.target]
            assert event.end >= at + 0.25


def test_time_on_the_wire_and_unequal_stages_lengthen_the_step() -> None:
    actions = lower_all(OneFOneB(), 2, 4)

    def slow_second_stage(action: Action) -> float:
        return 3.0 if isinstance(action, (Forward, Backward)) and action.stage == 1 else 1.0

    plain = simulate(actions, duration=lambda action: 0.0 if isinstance(action, Send) else 1.0)
    wired = simulate(actions, duration=lambda action: 1.0)
    slow = simulate(actions, duration=slow_second_stage)
    assert plain.makespan == 10
    assert wired.makespan > plain.makespan
    # The slow stage is never idle but for the way to it and back: 1 + 1 to it, 4 * (3 + 3), 1 + 1 back.
    assert slow.makespan == 28
    assert slow.idle == (20.0, 4.0)


@pytest.mark.parametrize(("ranks", "micro_batches"), list(product((2, 3, 4, 8), (1, 2, 3, 4, 8))))
def test_synchronous_sends_deadlock_where_the_documentation_says_so(ranks: int, micro_batches: int) -> None:
    simulate(lower_all(GPipe(), ranks, micro_batches), rendezvous=True)
    simulate(lower_all(ForwardOnly(), ranks, micro_batches), rendezvous=True)
    deadlocked: list[Schedule] = [OneFOneB()] if micro_batches > 1 else []
    if micro_batches % ranks == 0:
        deadlocked += [Interleaved1F1B(2), ForwardOnly(InTurn(2))]
    for schedule in deadlocked:
        with pytest.raises(ScheduleError, match=r"deadlock: rank 0 at .*; rank 1 at "):
            simulate(lower_all(schedule, ranks, micro_batches), rendezvous=True)


@pytest.mark.parametrize("schedule", [GPipe(), OneFOneB(), Interleaved1F1B(2), ForwardOnly(InTurn(2))])
def test_one_rank_has_nobody_to_wait_for(schedule: Schedule) -> None:
    assert simulate(lower_all(schedule, 1, 4), rendezvous=True).bubble == 0


def test_a_synchronous_send_lasts_until_its_receive() -> None:
    simulation = simulate(lower_all(GPipe(), 2, 2), rendezvous=True)
    ends: dict[tuple[int, int, int], float] = {}
    for event in simulation.events:
        match event.action:
            case Send(micro_batch, source, target) | Recv(micro_batch, source, target):
                assert ends.setdefault((micro_batch, source, target), event.end) == event.end


def test_a_message_that_is_waited_for_takes_its_time_on_the_wire_once() -> None:
    for rendezvous in (False, True):
        simulation = simulate(lower_all(GPipe(), 2, 1), duration=lambda _: 1.0, rendezvous=rendezvous)
        assert simulation.makespan == 6  # two forward and two backward passes, an activation and a gradient


ACTIVATION_0 = Send(0, 0, 1, "activation"), Recv(0, 0, 1, "activation")
ACTIVATION_1 = Send(1, 0, 1, "activation"), Recv(1, 0, 1, "activation")


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (
            [
                [Forward(0, 0), Forward(1, 0), ACTIVATION_0[0], ACTIVATION_1[0]],
                [ACTIVATION_1[1], ACTIVATION_0[1], Forward(0, 1), Forward(1, 1)],
            ],
            r"rank 1 receives Message\(micro_batch=1.*but the next message on its channel is Message\(micro_batch=0",
        ),
        (
            [[Forward(0, 0)], [ACTIVATION_0[1], Forward(0, 1)]],
            r"deadlock: rank 1 at Recv\(micro_batch=0, source=0, target=1",
        ),
        (
            [[Forward(0, 0), ACTIVATION_0[0]], [Forward(0, 1)]],
            r"rank 1 comes to Forward\(micro_batch=0, stage=1\) without having Message",
        ),
        (
            [[ACTIVATION_0[0], Forward(0, 0)], [ACTIVATION_0[1], Forward(0, 1)]],
            r"rank 0 comes to Send\(.*\) without having Message",
        ),
        (
            [
                [Forward(0, 0), ACTIVATION_0[0], Recv(0, 1, 0, "gradient"), Backward(0, 0)],
                [ACTIVATION_0[1], Forward(0, 1), Backward(0, 1)],
            ],
            r"deadlock: rank 0 at Recv\(.*'gradient'\)",
        ),
        (
            [[Forward(0, 0), ACTIVATION_0[0]], [ACTIVATION_0[1], Forward(0, 1), Backward(0, 1)]],
            r"Backward\(micro_batch=0, stage=0\) happens 0 times",
        ),
        ([[Forward(0, 0), Forward(0, 0)]], r"Forward\(micro_batch=0, stage=0\) happens 2 times"),
        (
            [[Backward(0, 0), Forward(0, 0)]],
            r"Backward\(micro_batch=0, stage=0\) comes before Forward\(micro_batch=0, stage=0\)",
        ),
        ([[Forward(0, 0), BackwardInput(0, 0)]], r"BackwardWeight\(micro_batch=0, stage=0\) happens 0 times"),
        (
            [[Forward(0, 0), BackwardInput(0, 0), BackwardWeight(0, 0), Backward(0, 0)]],
            r"Backward\(micro_batch=0, stage=0\) happens beside its halves",
        ),
        ([[Forward(0, 0), BackwardWeight(0, 0)]], r"BackwardWeight\(.*\) comes before BackwardInput\(.*\)"),
        ([[Forward(0, 0)], [Forward(0, 0)]], "happens 2 times"),
        ([[Forward(0, 1)], [Forward(0, 0)]], r"rank 0 comes to Forward\(.*\) without having Message"),
        ([[Forward(0, 0)], [Forward(1, 0)]], r"rank 0 computes Forward\(.*\), a stage that is not on that rank"),
        (
            [[Forward(0, 0), Send(0, 1, 0, "gradient")], [ACTIVATION_0[1], Forward(0, 1)]],
            "rank 0 sends .*, whose source is on rank 1",
        ),
        (
            [[Forward(0, 0), Recv(0, 0, 1, "activation")], [Forward(0, 1)]],
            "rank 0 receives .*, whose target is on rank 1",
        ),
    ],
)
def test_actions_that_do_not_fit_together_are_refused(actions: list[list[Action]], message: str) -> None:
    with pytest.raises(ScheduleError, match=message):
        simulate(actions)


def test_a_message_that_nobody_receives_is_refused() -> None:
    actions: list[list[Action]] = [
        [Forward(0, 0), ACTIVATION_0[0], Backward(0, 0)],
        [ACTIVATION_0[1], Forward(0, 1), Backward(0, 1), Send(0, 1, 0, "gradient")],
    ]
    with pytest.raises(ScheduleError, match=r"rank 0 comes to Backward\(.*\) without having Message"):
        simulate(actions)
