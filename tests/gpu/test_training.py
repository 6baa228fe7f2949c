"""Training on a GPU: the numbers of the CPU, in every precision, without ever waiting for the device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from scaling.core.collectives import tree
from scaling.core.data.types import MicroBatch
from scaling.core.nn.parameter import meta
from scaling.core.optimizer.optimizer import Optimizer
from scaling.core.pipeline.module import ParallelModule
from scaling.core.topology.topology import Topology
from tests.gpu.waiting import without_waiting
from tests.reference.compare import close, gradient_of
from tests.reference.models import Loss, Model, micro_batches
from tests.reference.training import build
from tests.reference.worlds import topology_config

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

GPU = "cuda"
CONFIG = topology_config(global_batch_size=8, micro_batch_size=2)


class Training:
    """A model on a device, and its steps."""

    def __init__(self, model: Model, device: str, *, recompute: str = "disabled", **options: Any) -> None:
        self.model = model
        self.topology = Topology.single(device)
        config = topology_config(global_batch_size=8, micro_batch_size=2, activation_checkpointing_type=recompute)
        self.module: ParallelModule
        self.optimizer: Optimizer
        self.module, self.optimizer = build(model, config, self.topology, options)
        self.loss_function = Loss(model, self.topology)

    def batches(self, step: int) -> list[MicroBatch]:
        device = self.topology.device
        return [
            MicroBatch(tree.to_device(batch.inputs, device), tree.to_device(batch.targets, device))
            for batch in micro_batches(self.model, step, CONFIG, self.topology)
        ]

    def backward(self, step: int) -> tuple[Tensor, Tensor]:
        self.topology.rng.seed(step)
        loss = self.module.train_step(
            iter(self.batches(step)), self.loss_function, gradient_scale=self.optimizer.gradient_scale
        )
        return loss.loss, loss.weight

    def step(self, step: int) -> Tensor:
        loss, weight = self.backward(step)
        self.optimizer.step(step, weight=weight)
        return loss

    def weights(self) -> dict[str, Tensor]:
        return {meta(parameter).name: parameter.detach().cpu() for parameter in self.module.parameters()}

    def gradients(self) -> dict[str, Tensor]:
        scale = float(self.optimizer.gradient_scale)
        return {meta(p).name: gradient_of(p).cpu().double() / scale for p in self.module.parameters()}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-3)])
def test_steps_are_those_of_the_cpu(dtype: torch.dtype, tolerance: float) -> None:
    model = Model(dtype=dtype, dropout=0.1)
    gpu, cpu = Training(model, GPU), Training(model, "cpu")
    for key, value in gpu.weights().items():
        assert torch.equal(value, cpu.weights()[key]), f"{key} starts with other bits"
    for step in (1, 2, 3):
        assert gpu.step(step).item() == pytest.approx(cpu.step(step).item(), rel=tolerance)
    for key, value in gpu.weights().items():
        close(value, cpu.weights()[key], key, tolerance=tolerance)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_follows_float32_as_far_as_its_rounding_allows(dtype: torch.dtype) -> None:
    half = Training(Model(dtype=dtype), GPU, loss_scaler={"initial_scale": 256.0})
    wide = Training(Model(dtype=torch.float32), "cpu")
    (loss, _), (expected, _) = half.backward(1), wide.backward(1)
    step = torch.finfo(dtype).eps
    assert loss.item() == pytest.approx(expected.item(), rel=8 * step)
    reference = wide.gradients()
    for key, gradient in half.gradients().items():
        assert gradient_of(next(half.module.parameters())).dtype == torch.float32
        size = reference[key].norm().clamp_min(1e-2 * max(value.norm() for value in reference.values()))
        assert float((gradient - reference[key]).norm() / size) < 16 * step, key


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_host_never_waits_for_the_device(dtype: torch.dtype) -> None:
    training = Training(Model(dtype=dtype, dropout=0.1), GPU, loss_scaler={"initial_scale": 256.0})
    training.step(1)
    batches = training.batches(2)
    torch.cuda.synchronize()
    with without_waiting():
        loss = training.module.train_step(
            iter(batches), training.loss_function, gradient_scale=training.optimizer.gradient_scale
        )
        report = training.optimizer.step(2, weight=loss.weight)
        metrics = loss.metrics()
    assert {value.device.type for value in (loss.loss, report.global_grad_norm, *metrics.values())} == {GPU}


@pytest.mark.parametrize("recompute", ["every_layer", "every_pipe_stage"])
def test_recomputation_draws_the_same_numbers_again(recompute: str) -> None:
    model = Model(dtype=torch.float64, dropout=0.2, per_rank_dropout=True)
    kept, again = Training(model, GPU), Training(model, GPU, recompute=recompute)
    for step in (1, 2):
        assert again.step(step).item() == pytest.approx(kept.step(step).item(), rel=1e-12)
    for key, value in again.weights().items():
        close(value, kept.weights()[key], key, tolerance=1e-11)


def test_evaluation_has_the_loss_of_the_cpu() -> None:
    gpu, cpu = (Training(Model(dtype=torch.float64), device) for device in (GPU, "cpu"))
    losses = [one.module.eval_step(iter(one.batches(9)), one.loss_function).loss.item() for one in (gpu, cpu)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)
