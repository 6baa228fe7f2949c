"""A recipe in another precision computes in it everywhere, and names and starts its parameters as before."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from scaling.core import Learner, LossFunction, LossOutput, Recipe, Topology
from scaling.core.verify.precision import in_precision
from tests.core.verify.regression import layout, loss_of, recipe


def strict_loss(topology: Topology) -> LossFunction:
    """Return a loss that takes nothing but float64."""

    def loss(outputs: Tensor, targets: Any) -> LossOutput:
        assert {outputs.dtype, targets.dtype} == {torch.float64}
        return loss_of(outputs, targets)

    return loss


def learner_of(recipe: Recipe) -> Learner:
    return Learner(recipe, layout(), Topology.single())


def weights(learner: Learner) -> dict[str, Tensor]:
    return {tensor.key: tensor.parts[0][1].clone() for tensor in learner.module.global_tensors()}


def test_parameters_inputs_and_targets_are_brought_to_the_precision() -> None:
    learner = learner_of(in_precision(replace(recipe(), loss=strict_loss), "float64"))
    assert {parameter.dtype for parameter in learner.module.parameters()} == {torch.float64}
    assert learner.step(1)[0].loss.isfinite()
    assert learner.evaluate() is not None
    assert {parameter.dtype for parameter in learner_of(recipe()).module.parameters()} == {torch.float32}


def test_names_and_losses_are_those_of_the_recipe_but_for_rounding() -> None:
    plain, wide = learner_of(recipe()), learner_of(in_precision(recipe(), "float64"))
    assert list(weights(plain)) == list(weights(wide))
    assert all(torch.equal(value, weights(wide)[key].float()) for key, value in weights(plain).items())
    for step in (1, 2):
        expected, found = (float(learner.step(step)[0].loss) for learner in (plain, wide))
        assert found == pytest.approx(expected, rel=1e-5)


def test_it_can_be_sent_to_other_processes() -> None:
    sent = pickle.loads(pickle.dumps(in_precision(recipe(), "float64")))
    assert {parameter.dtype for parameter in learner_of(sent).module.parameters()} == {torch.float64}
