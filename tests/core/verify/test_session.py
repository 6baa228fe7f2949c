from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from scaling.core import AdamWConfig, Session, Topology
from tests.core.verify.regression import Numbers, layout, loss_of, recipe


def session(**changes: object) -> Session:
    config = replace(recipe(), **changes)  # type: ignore[arg-type]  # fields of Recipe
    return Session(config, layout(), Topology.single())


def plain_loss(of: Session, step: int) -> torch.Tensor:
    """Return the mean loss of a global batch, without the engine."""
    batches = list(zip(range(2), of._batches(step), strict=False))
    found = []
    for _, batch in batches:
        x = batch.inputs
        for layer in of.module.stages["0"].layers:  # type: ignore[union-attr]  # ModuleDict forgets Stage
            x = layer(x)
        found.append(loss_of(x, batch.targets))
    return sum(one.loss_sum for one in found) / sum(torch.as_tensor(one.weight) for one in found)  # type: ignore[return-value]  # no tensor is 0


def test_gradients_are_those_of_the_mean_loss_before_clipping() -> None:
    watched = session(optimizer=AdamWConfig(gradient_clipping=1e-3))
    parameters = [parameter for parameter, _ in watched.module.parameters_with_meta()]
    expected = torch.autograd.grad(plain_loss(watched, 1), parameters)
    numbers = watched.step(1)
    by_key = {tensor.key: tensor.parts[0][1] for tensor in watched.tensors("gradients")}
    for (_, description), gradient in zip(watched.module.parameters_with_meta(), expected, strict=True):
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
    keys = [held.key for held in watched.held()]
    assert watched.probe(1, dict.fromkeys(keys, "initial")) == pytest.approx(first, rel=1e-14)
    assert watched.probe(1, dict.fromkeys(keys, "zero")) not in (first, second)
    assert watched.probe(2, {}) == pytest.approx(second, rel=1e-14)


def test_parameters_and_data_are_brought_to_the_precision() -> None:
    assert {parameter.dtype for parameter in session().module.parameters()} == {torch.float64}
    assert {parameter.dtype for parameter in session(precision=None).module.parameters()} == {torch.float32}


def test_every_sample_of_the_evaluation_counts_once() -> None:
    watched = session(evaluation=Numbers(7))
    samples = [Numbers(7)[index] for index in range(7)]
    batch = Numbers(7).collate(samples, range(7), [True] * 7)
    x = batch.inputs.double()
    with torch.no_grad():
        for layer in watched.module.stages["0"].layers:  # type: ignore[union-attr]  # ModuleDict forgets Stage
            x = layer(x)
    expected = loss_of(x, batch.targets)
    assert watched.evaluate() == pytest.approx(float(expected.loss_sum / expected.weight), rel=1e-14)
    assert session(evaluation=None).evaluate() is None


def test_what_is_written_is_what_is_compared(tmp_path: Path) -> None:
    watched = session()
    watched.write("weights", tmp_path)
    assert not [deviation for deviation in watched.compare("weights", tmp_path) if deviation.different]
    watched.step(1)
    assert all(deviation.absolute > 0 for deviation in watched.compare("weights", tmp_path))
