"""A learner's steps follow from its recipe and the step's number alone, whoever drives it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from unittest import mock

import pytest
import torch
from torch import Tensor

from scaling.core.topology.topology import Topology
from scaling.core.training.learner import Learner
from tests.core.verify.regression import Numbers, layout, recipe
from tests.distributed import run_distributed
from tests.reference.worlds import connected


def learner_of(**changes: object) -> Learner:
    changed = replace(recipe(), **changes)  # type: ignore[arg-type]  # fields of Recipe
    return Learner(changed, layout(), Topology.single())


def weights(learner: Learner) -> dict[str, Tensor]:
    return {tensor.key: tensor.parts[0][1].clone() for tensor in learner.module.global_tensors()}


def losses(learner: Learner, steps: Iterator[int]) -> list[float]:
    return [float(learner.step(step)[0].loss) for step in steps]


def test_equal_recipes_take_equal_steps_and_another_seed_takes_others() -> None:
    first, second, other = learner_of(), learner_of(), learner_of(seed=1)
    assert all(torch.equal(value, weights(second)[key]) for key, value in weights(first).items())
    expected = losses(first, iter(range(1, 4)))
    assert losses(second, iter(range(1, 4))) == expected
    assert not set(losses(other, iter(range(1, 4)))) & set(expected)


def test_the_loss_of_a_batch_is_what_the_step_on_it_reports() -> None:
    learner = learner_of()
    before = weights(learner)
    tried = float(learner.training_loss(1).loss)
    assert all(torch.equal(value, before[key]) for key, value in weights(learner).items())
    learner.seek(0)
    assert float(learner.step(1)[0].loss) == pytest.approx(tried, rel=1e-6)


def test_seeking_goes_on_with_the_batch_behind_the_samples() -> None:
    whole, sought = learner_of(), learner_of()
    for step in (1, 2):
        whole.training_loss(step)
    sought.seek(2 * sought.samples_per_step)
    assert float(sought.training_loss(3).loss) == float(whole.training_loss(3).loss)


def test_the_streams_of_a_step_follow_from_its_number() -> None:
    one, other = learner_of(), learner_of()
    states = []
    for learner, step in ((one, 1), (one, 2), (other, 2)):
        learner.training_loss(step)
        states.append(learner.topology.rng.state()["sharded"])
    assert [torch.equal(states[2], state) for state in states] == [False, True, True]


def test_an_evaluation_can_be_cut_short_or_left_out() -> None:
    learner = learner_of(evaluation=Numbers(21))
    whole, part = learner.evaluate(), learner.evaluate(limit=1)
    assert whole is not None
    assert part is not None
    assert float(part.weight) < float(whole.weight)
    assert learner_of(evaluation=None).evaluate() is None


def test_closing_ends_the_data_and_lets_go_of_the_parameters() -> None:
    learner = learner_of()
    with (
        mock.patch.object(learner.data, "close", wraps=learner.data.close) as data,
        mock.patch.object(learner.optimizer, "close", wraps=learner.optimizer.close) as optimizer,
    ):
        learner.close()
    assert (data.call_count, optimizer.call_count) == (1, 1)


def test_a_checkpoint_holds_weights_and_moments() -> None:
    keys = {tensor.key for tensor in learner_of().global_tensors()}
    names = set(weights(learner_of()))
    assert keys == {*names, *(f"optimizer.{slot}.{name}" for slot in ("exp_avg", "exp_avg_sq") for name in names)}


def train_in_a_world(rank: int, world_size: int, sizes: dict[str, int]) -> list[float]:
    with connected(**sizes, micro_batch_size=2, global_batch_size=8) as topology:
        config = layout(**sizes, steps=4 // sizes.get("data", 1))
        return losses(Learner(recipe(), config, topology), iter(range(1, 4)))


@pytest.mark.parametrize("sizes", [{"data": 2}, {"pipe": 2}, {"model": 2}], ids=str)
def test_a_recipe_is_learnt_alike_in_every_layout(sizes: dict[str, int]) -> None:
    expected = losses(Learner(recipe(), layout(steps=4), Topology.single()), iter(range(1, 4)))
    for found in run_distributed(train_in_a_world, 2, sizes):
        assert found == pytest.approx(expected, rel=1e-5)
