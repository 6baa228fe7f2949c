"""Fine-tuning on a GPU: every method takes the steps that it takes on the CPU, also on a base of half precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from scaling.core import Learner, Topology
from scaling.core.nn.parameter import meta
from tests.contract.finetuning import METHODS, finetuned
from tests.contract.models import recipe
from tests.gpu.waiting import without_waiting
from tests.reference.compare import close

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@contextmanager
def learning(model: str, device: str, precision: str) -> Iterator[Learner]:
    scaler = {"loss_scaler": {"initial_scale": 16.0}}
    config = finetuned(model, {"micro_batch_size": 24, "device": device}, scaler, precision=precision)
    learner = Learner(recipe(config), config.topology, Topology.single(device))
    yield learner
    learner.close()


def weights(learner: Learner) -> dict[str, Tensor]:
    return {meta(p).name: p.detach().cpu().clone() for p in learner.module.parameters()}


@pytest.mark.parametrize("model", METHODS)
def test_steps_are_those_of_the_cpu(model: str) -> None:
    with learning(model, "cuda", "float64") as gpu, learning(model, "cpu", "float64") as cpu:
        for step in (1, 2, 3):
            for learner in (gpu, cpu):
                learner.seek((step - 1) * learner.samples_per_step)
            losses = [learner.step(step)[0].loss.item() for learner in (gpu, cpu)]
            assert losses[0] == pytest.approx(losses[1], rel=1e-9)
        for key, value in weights(gpu).items():
            close(value, weights(cpu)[key], key, tolerance=1e-8)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_a_half_precision_base_stays_and_float32_beside_it_learns(precision: str) -> None:
    with learning("lora", "cuda", precision) as learner:
        before = weights(learner)
        losses = [learner.step(step)[0].loss.item() for step in range(1, 6)]
        after = weights(learner)
    trained = {key for key, value in after.items() if value.dtype == torch.float32}
    assert trained
    assert all(not torch.equal(before[key], after[key]) for key in trained)
    assert all(torch.equal(before[key], after[key]) for key in after.keys() - trained)
    assert all(map(torch.isfinite, map(torch.tensor, losses)))


@pytest.mark.parametrize("model", METHODS)
def test_a_step_waits_for_nothing(model: str) -> None:
    with learning(model, "cuda", "bfloat16") as learner:
        learner.step(1)
        with without_waiting():
            learner.step(2)
