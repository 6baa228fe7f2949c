"""A session watches a training's own steps: gradients, probes and evaluations are what a plain program computes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from scaling.core import AdamWConfig, Session, Topology
from scaling.core.verify.precision import in_precision
from tests.core.verify.regression import Numbers, layout, loss_of, recipe


def session(**changes: object) -> Session:
    changed = replace(recipe(), **changes)  # type: ignore[arg-type]  # fields of Recipe
    return Session(in_precision(changed, "float64"), layout(), Topology.single())


def forward(watched: Session, x: Tensor) -> Tensor:
    """Return what the layers make of x, one after the other, without the engine."""
    for layer in watched.learner.module.stages["0"].layers:  # type: ignore[union-attr]  # ModuleDict forgets Stage
        x = layer(x)
    return x


def plain_loss(watched: Session, step: int) -> Tensor:
    """Return the mean loss of a global batch, without the engine."""
    watched.learner.seek((step - 1) * watched.learner.samples_per_step)
    batches = [next(watched.learner.data.training) for _ in range(2)]
    losses = [loss_of(forward(watched, batch.inputs), batch.targets.double()) for batch in batches]
    weight = sum(torch.as_tensor(loss.weight) for loss in losses)
    return torch.stack([loss.loss_sum for loss in losses]).sum() / weight


def test_gradients_are_those_of_the_mean_loss_before_clipping() -> None:
    watched = session(optimizer=AdamWConfig(gradient_clipping=1e-3))
    described = list(watched.learner.module.parameters_with_meta())
    expected = torch.autograd.grad(plain_loss(watched, 1), [parameter for parameter, _ in described])
    numbers = watched.step(1)
    by_key = {tensor.key: tensor.parts[0][1] for tensor in watched.tensors("gradients")}
    for (_, description), gradient in zip(described, expected, strict=True):
        torch.testing.assert_close(by_key[description.name], gradient, rtol=1e-12, atol=1e-14)
    norm = torch.cat([gradient.flatten() for gradient in expected]).norm()
    assert numbers.gradient_norm == pytest.approx(float(norm))
    assert numbers.gradient_norm > 1e-3


def test_a_probe_is_the_loss_at_changed_weights() -> None:
    watched = session()
    with torch.no_grad():
        first = float(plain_loss(watched, 1))
    assert watched.step(1).loss == pytest.approx(first, rel=1e-14)
    second = watched.step(2).loss
    assert watched.probe(2, {}) == pytest.approx(second, rel=1e-14)
    keys = [held.key for held in watched.held_boxes()]
    assert watched.probe(1, dict.fromkeys(keys, "initial")) == pytest.approx(first, rel=1e-14)
    assert watched.probe(1, dict.fromkeys(keys, "zero")) not in (first, second)
    assert watched.probe(2, {}) == pytest.approx(second, rel=1e-14)


def test_every_sample_of_the_evaluation_counts_once() -> None:
    watched = session(evaluation=Numbers(7))
    samples = [Numbers(7)[index] for index in range(7)]
    batch = Numbers(7).collate(samples, range(7), [True] * 7)
    with torch.no_grad():
        expected = loss_of(forward(watched, batch.inputs), batch.targets.double())
    assert watched.evaluate() == pytest.approx(float(expected.loss_sum / expected.weight), rel=1e-14)
    assert session(evaluation=None).evaluate() is None


def test_what_is_written_is_what_is_compared(tmp_path: Path) -> None:
    watched = session()
    watched.write("weights", tmp_path)
    assert not [deviation for deviation in watched.compare("weights", tmp_path) if deviation.different]
    watched.step(1)
    assert all(deviation.absolute > 0 for deviation in watched.compare("weights", tmp_path))
