"""The token ring: proofs by the simulator that it is free of deadlock, and what groups of rows gain."""

from __future__ import annotations

import pytest

from scaling.core.errors import LayoutError, ScheduleError
from scaling.core.pipeline.actions import Accept, Action, Choose, Forward, Recv, Send
from scaling.core.pipeline.draw import chrome_trace, draw
from scaling.core.pipeline.lowering import lower, lower_all
from scaling.core.pipeline.ring import TokenRing, predicted_gain, rounds_per_time
from scaling.core.pipeline.simulate import simulate

GRID = [(ranks, groups, many) for ranks in range(1, 9) for groups in range(1, 11) for many in (1, groups, 37)]


def test_rings_are_free_of_deadlock_and_as_busy_as_there_are_groups() -> None:
    for ranks, groups, micro_batches in GRID:
        simulation = simulate(lower_all(TokenRing(groups), ranks, micro_batches))
        rounds, behind = divmod(
            micro_batches - 1, min(groups, ranks)
        )  # of the last: before it, and before it in its own
        expected = rounds * ranks + behind + ranks
        assert simulation.makespan == expected, (ranks, groups, micro_batches)
        assert 1 - simulation.bubble == pytest.approx(micro_batches / expected)
        assert simulation.peak_activations == (1,) * ranks


def test_one_group_keeps_one_rank_busy_and_as_many_as_ranks_keep_all_busy() -> None:
    for ranks in range(1, 9):
        assert simulate(lower_all(TokenRing(1), ranks, 37)).bubble == pytest.approx(1 - 1 / ranks)
        assert rounds_per_time(ranks, 1) == pytest.approx(1 / ranks)
        assert rounds_per_time(ranks, ranks) == pytest.approx(1 / ranks)  # every group gets a token
        for groups in {1, 2, ranks, ranks + 3}:
            assert predicted_gain(ranks, groups) == pytest.approx(min(groups, ranks))
            assert predicted_gain(ranks, groups, part=1.0) == pytest.approx(min(1, ranks / groups))


def test_the_slices_of_all_micro_batches_are_the_lowered_list() -> None:
    for ranks, groups, micro_batches in GRID:
        ring = TokenRing(groups)
        for rank in {0, 1 % ranks, ranks // 2, ranks - 1}:
            slices = [ring.actions(rank, ranks, number) for number in range(micro_batches + groups)]
            joined = [action for own in slices for action in own if action.micro_batch < micro_batches]
            assert tuple(joined) == lower(ring, rank, ranks, micro_batches)
            assert {action.micro_batch for action in slices[groups]} == {0, groups}


def test_tokens_go_around_the_ring_up_to_the_stage_before_the_last() -> None:
    ring = TokenRing(2)
    assert ring.actions(0, 3, 5) == (
        Recv(3, 2, 0, "token"),
        Accept(3, 0),
        Send(3, 0, 1, "token"),
        Forward(5, 0),
        Send(5, 0, 1, "activation"),
    )
    assert ring.actions(1, 3, 5) == (
        Recv(3, 0, 1, "token"),
        Accept(3, 1),
        Recv(5, 0, 1, "activation"),
        Forward(5, 1),
        Send(5, 1, 2, "activation"),
    )
    assert ring.actions(2, 3, 5) == (
        Accept(3, 2),
        Recv(5, 1, 2, "activation"),
        Forward(5, 2),
        Choose(5, 2),
        Send(5, 2, 0, "token"),
    )
    assert ring.actions(0, 1, 1) == (Forward(1, 0), Choose(1, 0))
    assert ring.actions(0, 1, 2) == (Accept(0, 0), Forward(2, 0), Choose(2, 0))


def test_synchronous_sends_deadlock_where_groups_fill_more_than_half_of_the_ranks() -> None:
    for ranks, groups, micro_batches in GRID:
        actions = lower_all(TokenRing(groups), ranks, micro_batches)
        if groups <= (ranks + 1) // 2 or micro_batches < ranks or ranks == 1:
            simulate(actions, rendezvous=True)
        else:
            with pytest.raises(ScheduleError, match=r"deadlock: rank 0 at .*; rank 1 at "):
                simulate(actions, rendezvous=True)


def test_slow_messages_and_slow_choices_cost_what_they_last() -> None:
    def slow(action: Action) -> float:
        return {Forward: 1.0, Choose: 0.5, Send: 0.25}.get(type(action), 0.0)

    assert rounds_per_time(2, 1, slow) == pytest.approx(1 / 3)  # two passes, a choice, two messages
    assert rounds_per_time(2, 2, slow) == pytest.approx(1 / 3)  # the last rank computes all the time


def test_a_ring_is_drawn_with_its_letters_and_all_its_arrows() -> None:
    def duration(action: Action) -> float:
        return float(isinstance(action, (Forward, Choose, Accept)))

    simulation = simulate(lower_all(TokenRing(2), 2, 2), duration=duration)
    assert draw(simulation).splitlines() == [
        "rank 0  F0 F1 ...A0 ...A1 ...",
        "rank 1  ...F0 C0 F1 C1 A0 A1",
    ]
    arrows = [entry["id"] for entry in chrome_trace(simulation)["traceEvents"] if entry["ph"] == "s"]
    assert len(arrows) == len(set(arrows)) == 4


A, C, F = Accept, Choose, Forward
ACTIVATION = Send(0, 0, 1, "activation"), Recv(0, 0, 1, "activation")
TOKEN = Send(0, 1, 0, "token"), Recv(0, 1, 0, "token")


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        ([[F(0, 0), C(0, 0)]], r"Accept\(micro_batch=0, stage=0\) happens 0 times"),
        ([[F(0, 0), A(0, 0)]], r"Choose\(micro_batch=0, stage=0\) happens 0 times"),
        ([[F(0, 0), A(0, 0), C(0, 0)]], r"Accept\(.*\) comes before Choose\(.*\)"),
        ([[C(0, 0), F(0, 0), A(0, 0)]], r"Choose\(.*\) comes before Forward\(.*\)"),
        ([[F(0, 0), C(0, 0), C(0, 0), A(0, 0)]], r"Choose\(.*\) happens 2 times"),
        (
            [
                [F(0, 0), C(0, 0), ACTIVATION[0], TOKEN[1], A(0, 0)],
                [ACTIVATION[1], F(0, 1), C(0, 1), TOKEN[0], A(0, 1)],
            ],
            r"Choose\(micro_batch=0, stage=0\) happens on a stage before the last, stage 1",
        ),
        (
            [[F(0, 0), ACTIVATION[0], A(0, 0)], [ACTIVATION[1], F(0, 1), C(0, 1), A(0, 1)]],
            r"rank 0 comes to Accept\(.*\) without having Message",
        ),
    ],
)
def test_tokens_that_are_not_chosen_once_and_then_taken_in_are_refused(
    actions: list[list[Action]], message: str
) -> None:
    with pytest.raises(ScheduleError, match=message):
        simulate(actions)


def test_impossible_numbers_are_refused() -> None:
    with pytest.raises(LayoutError, match="at least 1 group of rows, not 0"):
        TokenRing(0)
    with pytest.raises(LayoutError, match="pipe rank 2 is outside the pipeline of 2 ranks"):
        lower(TokenRing(1), 2, 2, 1)
