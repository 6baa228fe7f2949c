"""The fused update on a GPU: skipped on the device where gradients overflow, and the CPU's where they do not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from scaling.core.data.types import MicroBatch
from scaling.core.optimizer.config import AdamWConfig, LossScalerConfig
from scaling.core.optimizer.loss_scaler import LossScaler
from scaling.core.optimizer.optimizer import Optimizer
from scaling.core.pipeline.layer_spec import LayerSpec
from scaling.core.pipeline.loss import LossOutput
from scaling.core.pipeline.module import ParallelModule
from scaling.core.topology.topology import Topology
from tests.gpu.waiting import without_waiting
from tests.reference.assembly import everything, module_and_optimizer
from tests.reference.compare import close, gradient_of
from tests.reference.worlds import random, topology_config

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

GPU = "cuda"
WIDTH = 64


def make(dtype: torch.dtype, device: str = GPU) -> tuple[ParallelModule, Optimizer]:
    topology = Topology.single(device)
    layers = [LayerSpec(nn.Linear, WIDTH, WIDTH, dtype=dtype)]
    config = AdamWConfig(loss_scaler=LossScalerConfig(initial_scale=16.0, hysteresis=1))
    return module_and_optimizer(layers, topology, topology_config(), config, groups=everything(weight_decay=0.1))


def train_step(module: ParallelModule, optimizer: Optimizer, step: int) -> torch.Tensor:
    parameter = next(module.parameters())
    x = random(1, WIDTH, seed=step).to(parameter.device, parameter.dtype)
    loss = module.train_step(
        iter([MicroBatch(x, None)]),
        lambda output, targets: LossOutput(output.float().square().sum(), 1.0),
        gradient_scale=optimizer.gradient_scale,
    )
    return loss.weight


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("poison", [torch.inf, torch.nan])
def test_an_overflow_skips_the_update_on_the_device(dtype: torch.dtype, poison: float) -> None:
    module, optimizer = make(dtype)
    for step in (1, 2):
        optimizer.step(step, weight=train_step(module, optimizer, step))
    weight = train_step(module, optimizer, 3)
    state = [*module.parameters(), *(view for tensor in optimizer.global_tensors() for _, view in tensor.parts)]
    before = [tensor.detach().clone() for tensor in state]
    gradient_of(next(module.parameters())).view(-1)[5] = poison
    with without_waiting():
        report = optimizer.step(3, weight=weight)
    assert report.overflow.item() == 1.0
    assert all(torch.equal(tensor, kept) for tensor, kept in zip(state, before, strict=True))
    assert optimizer.state()["updates"] == 2
    assert not any(gradient_of(parameter).any() for parameter in module.parameters())
    assert optimizer.gradient_scale.item() == (8.0 if dtype == torch.float16 else 1.0)
    optimizer.step(4, weight=train_step(module, optimizer, 4))
    assert not torch.equal(state[0], before[0])
    assert optimizer.state()["updates"] == 3


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_updates_are_those_of_the_cpu(dtype: torch.dtype, tolerance: float) -> None:
    both = [make(dtype, device) for device in (GPU, "cpu")]
    for step in range(1, 6):
        norms = [
            optimizer.step(step, weight=train_step(module, optimizer, step)).global_grad_norm.item()
            for module, optimizer in both
        ]
        assert norms[0] == pytest.approx(norms[1], rel=tolerance)
    for one, other in zip(both[0][0].parameters(), both[1][0].parameters(), strict=True):
        close(one.cpu(), other, tolerance=tolerance)


def test_the_loss_scale_is_decided_on_the_device() -> None:
    config = LossScalerConfig(initial_scale=1024.0, window=2, hysteresis=2)
    scalers = [LossScaler(config, torch.device(device), enabled=True) for device in (GPU, "cpu")]
    for overflow in (1, 0, 1, 1, 0, 0, 0, 0, 1, 1):
        for scaler in scalers:
            scaler.update(torch.tensor(float(overflow), dtype=torch.float64, device=scaler.scale.device))
        assert scalers[0].scale.item() == scalers[1].scale.item()
    assert scalers[0].state() == scalers[1].state()
