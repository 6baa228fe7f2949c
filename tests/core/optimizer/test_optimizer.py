"""AdamW on flat shards against torch's AdamW on whole tensors, with and without ZeRO."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from scaling.core.errors import CheckpointError
from scaling.core.optimizer.config import AdamWConfig
from scaling.core.optimizer.groups import ParameterGroup
from scaling.core.optimizer.lr_schedule import LearningRateSchedulerConfig
from scaling.core.optimizer.optimizer import Optimizer
from scaling.core.pipeline.layer_spec import LayerSpec
from scaling.core.pipeline.module import ParallelModule
from scaling.core.topology.topology import Topology
from tests.core.optimizer.plain_model import (
    RATE,
    SAMPLES,
    WIDTH,
    forward,
    loss_sum,
    make,
    sample,
    train_step,
    values,
)
from tests.distributed import run_distributed
from tests.reference.assembly import module_and_optimizer
from tests.reference.compare import backward, close, gradient_of
from tests.reference.training import Part, join, parts_of
from tests.reference.worlds import connected, topology_config


@settings(max_examples=25)
@given(
    clip=st.sampled_from([0.0, 0.3, 100.0]),
    betas=st.tuples(st.sampled_from([0.0, 0.9]), st.sampled_from([0.5, 0.95])),
    decay=st.sampled_from([0.0, 0.1]),
    independent=st.booleans(),
    scale=st.sampled_from([1.0, 0.25]),
    bucket=st.sampled_from([1, 100, 10**6]),
    usual_weight=st.sampled_from([1.0, 4.0, 1000.0]),
)
def test_steps_are_those_of_torchs_adamw_on_whole_tensors(
    clip: float,
    betas: tuple[float, float],
    decay: float,
    independent: bool,
    scale: float,
    bucket: int,
    usual_weight: float,
) -> None:
    module, optimizer = make(
        scale=scale,
        decay=decay,
        independent=independent,
        usual_weight=usual_weight,
        gradient_clipping=clip,
        beta1=betas[0],
        beta2=betas[1],
        allreduce_bucket_size=bucket,
    )
    whole = {key: value.requires_grad_() for key, value in values(module).items()}
    coefficient = decay / RATE if independent else decay
    groups = [
        # lr_scale changes the learning rate and leaves the decay as it is.
        {
            "params": [v for k, v in whole.items() if "offset" in k],
            "lr": RATE * scale,
            "weight_decay": coefficient / scale,
        },
        {"params": [v for k, v in whole.items() if "offset" not in k], "lr": RATE, "weight_decay": coefficient},
    ]
    adamw = torch.optim.AdamW(groups, betas=betas, eps=1e-8)
    for step in (1, 2, 3):
        report = optimizer.step(step, weight=train_step(module, optimizer, step).weight)
        adamw.zero_grad()
        for number in range(SAMPLES):
            backward(loss_sum(forward(whole, sample(step, number, torch.float64))) / SAMPLES)
        norm = torch.nn.utils.get_total_norm([gradient_of(value) for value in whole.values()])
        assert float(report.global_grad_norm) == pytest.approx(float(norm), rel=1e-12)
        if clip:
            for value in whole.values():
                gradient_of(value).mul_((clip / norm).clamp_max(1.0))
        adamw.step()
        assert report.learning_rates == {"all": RATE}
        assert float(report.overflow) == 0.0
        for key, value in values(module).items():
            close(value, whole[key], key, tolerance=1e-13)


def train_with_zero(
    rank: int, world_size: int, zero: bool, dtype: torch.dtype, clip: float, bucket: int
) -> tuple[list[float], list[float], list[Part]]:
    with connected(data=world_size) as topology:
        options: dict[str, Any] = {"zero": zero, "gradient_clipping": clip, "allreduce_bucket_size": bucket}
        module, optimizer = make(topology, dtype=dtype, **options)
        losses, norms = [], []
        for step in (1, 2, 3):
            found = train_step(module, optimizer, step, dtype=dtype)
            losses.append(found.loss.item())
            norms.append(optimizer.step(step, weight=found.weight).global_grad_norm.item())
        return losses, norms, parts_of((*module.global_tensors(), *optimizer.global_tensors()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bucket", [1, 10**6])
def test_sharding_changes_no_bit(dtype: torch.dtype, bucket: int) -> None:
    """Over two ranks gloo adds in the same order for a reduce-scatter as for an all-reduce. The norm is added up in
    another order, so this is without clipping; with it the results differ by the rounding of one factor."""
    whole, sharded = (run_distributed(train_with_zero, 2, zero, dtype, 0.0, bucket) for zero in (False, True))
    assert whole[0][0] == sharded[0][0]
    assert whole[0][1] == pytest.approx(sharded[0][1], rel=1e-6)
    expected, found = (join([parts for *_, parts in results]) for results in (whole, sharded))
    assert set(expected) == set(found)
    assert any(key.startswith("optimizer.master.") for key in found) == (dtype == torch.bfloat16)
    for key, value in found.items():
        assert torch.equal(value, expected[key]), key


def test_sharding_and_clipping_agree_up_to_rounding() -> None:
    whole, sharded = (run_distributed(train_with_zero, 4, zero, torch.float64, 0.3, 100) for zero in (False, True))
    assert whole[0][0] == pytest.approx(sharded[0][0], rel=1e-13)
    expected, found = (join([parts for *_, parts in results]) for results in (whole, sharded))
    for key, value in found.items():
        close(value, expected[key], key, tolerance=1e-13)


def count_state(rank: int, world_size: int) -> tuple[int, int]:
    with connected(data=world_size) as topology:
        _, optimizer = make(topology, dtype=torch.bfloat16, layers=8, zero=True, allreduce_bucket_size=200)
        kept = sum(shard.master.numel() for shard in optimizer._shards)
        return kept, sum(buffer.weights.numel() for buffer in optimizer._buffers)


@pytest.mark.parametrize("world_size", [2, 4])
def test_each_data_rank_keeps_its_part_of_the_state(world_size: int) -> None:
    for kept, whole in run_distributed(count_state, world_size):
        assert kept * world_size == whole


def test_a_batch_without_valid_items_has_gradient_zero() -> None:
    module, optimizer = make(decay=0.0)
    before = values(module)
    found = train_step(module, optimizer, 1, weight=0.0)
    report = optimizer.step(1, weight=found.weight)
    assert (float(found.weight), float(found.loss)) == (0.0, 0.0)
    assert (float(report.global_grad_norm), float(report.overflow)) == (0.0, 0.0)
    assert all(torch.equal(value, before[key]) for key, value in values(module).items())


def test_gradients_that_are_cleared_stay_the_optimizers() -> None:
    module, optimizer = make()
    before = values(module)
    train_step(module, optimizer, 2)
    module.zero_grad()
    optimizer.step(1, weight=train_step(module, optimizer, 1).weight)
    cleared = values(module)
    module, optimizer = make()
    optimizer.step(1, weight=train_step(module, optimizer, 1).weight)
    for key, expected in values(module).items():
        assert torch.equal(cleared[key], expected)
        assert not torch.equal(before[key], expected)


@pytest.mark.parametrize("usual_weight", [1.0, 64.0])
def test_the_weight_of_the_batch_divides_whatever_weight_is_usual(usual_weight: float) -> None:
    module, optimizer = make(usual_weight=usual_weight, gradient_clipping=0.0, beta1=0.0)
    half, other = make(usual_weight=4.0, gradient_clipping=0.0, beta1=0.0)
    for one, its, weight in ((module, optimizer, 1.0), (half, other, 0.5)):
        its.step(1, weight=train_step(one, its, 1, weight=weight).weight)
    for key, value in values(module).items():
        close(value, values(half)[key], key, tolerance=1e-13)


def test_state_and_tensors_restore_the_optimizer() -> None:
    reference, expected = make(dtype=torch.float16)
    for step in range(1, 7):
        expected.step(step, weight=train_step(reference, expected, step, dtype=torch.float16).weight)
    module, optimizer = make(dtype=torch.float16)
    for step in range(1, 4):
        optimizer.step(step, weight=train_step(module, optimizer, step, dtype=torch.float16).weight)
    stored = {tensor.key: [view.clone() for _, view in tensor.parts] for tensor in saved(module, optimizer)}
    state = optimizer.state()

    module, optimizer = make(dtype=torch.float16)
    for tensor in saved(module, optimizer):
        for (_, view), value in zip(tensor.parts, stored[tensor.key], strict=True):
            view.copy_(value)
    optimizer.restore(state)
    for step in range(4, 7):
        optimizer.step(step, weight=train_step(module, optimizer, step, dtype=torch.float16).weight)
    assert all(torch.equal(value, values(reference)[key]) for key, value in values(module).items())
    assert optimizer.state() == expected.state()


def saved(module: ParallelModule, optimizer: Optimizer) -> Any:
    return (*module.global_tensors(), *optimizer.global_tensors())


@pytest.mark.parametrize(
    "state", [{}, {"updates": 3}, {"updates": "many", "loss_scaler": {}}, {"updates": 1, "loss_scaler": 5}]
)
def test_a_malformed_state_is_refused(state: dict[str, Any]) -> None:
    _, optimizer = make()
    with pytest.raises(CheckpointError, match="the checkpoint's optimizer state is malformed"):
        optimizer.restore(state)


def test_an_optimizer_with_nothing_to_train_steps() -> None:
    layers = [LayerSpec(nn.Linear, WIDTH, WIDTH)]
    _, optimizer = module_and_optimizer(layers, Topology.single(), topology_config(), groups=(), allow_missing=True)
    report = optimizer.step(1, weight=torch.ones((), dtype=torch.float64))
    assert float(report.global_grad_norm) == 0.0
    assert list(optimizer.global_tensors()) == []
    assert optimizer.state()["updates"] == 0


def test_a_rank_whose_share_is_frozen_counts_the_updates_of_the_others() -> None:
    """Rank 0 writes the count into checkpoints, and the others correct their moments by it."""
    config = topology_config()
    module = ParallelModule([LayerSpec(nn.Linear, WIDTH, WIDTH)], Topology.single(), config, seed=1)
    group = ParameterGroup(name="elsewhere", learning_rate_scheduler=LearningRateSchedulerConfig(learning_rate=RATE))
    optimizer = Optimizer(AdamWConfig(), [group], Topology.single(), module=module)
    for step in (1, 2):
        optimizer.step(step, weight=torch.ones((), dtype=torch.float64))
    assert optimizer.state()["updates"] == 2
    optimizer.restore({"updates": 7, "loss_scaler": {}})
    assert optimizer.state()["updates"] == 7


def compare_with_ddp(rank: int, world_size: int) -> list[float]:
    with connected(data=world_size) as topology:
        module, optimizer = make(topology, gradient_clipping=0.0)
        replica = Plain(values(module))
        ddp = DistributedDataParallel(replica)
        adamw = torch.optim.AdamW(ddp.parameters(), lr=RATE, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
        for step in (1, 2):
            optimizer.step(step, weight=train_step(module, optimizer, step).weight)
            adamw.zero_grad()
            for number in range(rank, SAMPLES, world_size):  # DDP takes the mean over ranks
                with ddp.no_sync() if number + world_size < SAMPLES else torch.enable_grad():
                    backward(loss_sum(ddp(sample(step, number, torch.float64))) * world_size / SAMPLES)
            adamw.step()
        found = values(module)
        differences = [float((found[key] - value.detach()).abs().max()) for key, value in replica.named.items()]
        # DDP keeps the process group: freed after it is destroyed, it sometimes waits for its own thread for ever.
        del ddp
        gc.collect()
        return differences


class Plain(nn.Module):
    """The same two layers as one plain module."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.named = {key: nn.Parameter(value.clone()) for key, value in weights.items()}
        self.listed = nn.ParameterList(self.named.values())

    def forward(self, x: Tensor) -> Tensor:
        return forward(self.named, x)


def test_data_parallel_steps_are_those_of_distributed_data_parallel() -> None:
    for differences in run_distributed(compare_with_ddp, 2):
        assert max(differences) < 1e-13
