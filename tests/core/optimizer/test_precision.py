"""Half precision: float32 masters, float32 sums, and steps that are skipped where gradients overflow."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.core.optimizer.plain_model import RATE, SAMPLES, forward, loss_sum, make, sample, train_step, values
from tests.distributed import run_distributed
from tests.reference.compare import backward, close, gradient_of
from tests.reference.models import Model
from tests.reference.training import parts_of, train_in
from tests.reference.worlds import connected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_trains_float32_masters_with_gradients_summed_in_float32(dtype: torch.dtype) -> None:
    options: dict[str, Any] = {"loss_scaler": {"initial_scale": 256.0}}
    module, optimizer = make(dtype=dtype, **options)
    masters = {key: value.float() for key, value in values(module).items()}
    adamw = torch.optim.AdamW(list(masters.values()), lr=RATE, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    scale = (256.0 if dtype == torch.float16 else 1.0) / SAMPLES
    for step in range(1, 6):
        report = optimizer.step(step, weight=train_step(module, optimizer, step, dtype=dtype).weight)
        sums = {key: torch.zeros_like(master) for key, master in masters.items()}
        for number in range(SAMPLES):
            halves = {key: master.to(dtype).requires_grad_() for key, master in masters.items()}
            backward(loss_sum(forward(halves, sample(step, number, dtype))) * scale)
            for key, half in halves.items():
                sums[key] += gradient_of(half).float()
        norm = torch.nn.utils.get_total_norm([value.double() for value in sums.values()]) / scale / SAMPLES
        assert float(report.global_grad_norm) == pytest.approx(float(norm), rel=1e-6)
        for key, master in masters.items():
            master.grad = sums[key] * (min(1.0, 1.0 / float(norm)) / scale / SAMPLES)
        adamw.step()
        found = {part.key: torch.from_numpy(part.values) for part in parts_of(optimizer.global_tensors())}
        for key, value in values(module).items():
            assert value.dtype == dtype
            close(found[f"optimizer.master.{key}"], masters[key], key, tolerance=1e-6)
            assert torch.equal(value, found[f"optimizer.master.{key}"].to(dtype))


def test_small_updates_are_not_lost_in_half_precision() -> None:
    module, optimizer = make(dtype=torch.bfloat16, decay=0.0, scale=0.05)
    offset = next(module.parameters())
    with torch.no_grad():
        offset.fill_(1.0)
    optimizer.refresh()
    seen = []
    for step in range(1, 11):  # each of them an eighth of the distance to the next bfloat16 below 1
        for parameter in module.parameters():
            gradient_of(parameter).fill_(1.0)
        optimizer.step(step, weight=torch.ones((), dtype=torch.float64))
        seen.append(offset.detach()[0].item())
    assert seen[:3] == [1.0] * 3
    assert seen[-1] == 1 - 2.0**-8


def overflow_at(rank: int, world_size: int, zero: bool) -> list[Any]:
    """Overflow in the second of three steps, on one rank only. Return weights and state around it."""
    options: dict[str, Any] = {"zero": zero, "loss_scaler": {"initial_scale": 4.0, "hysteresis": 1}}
    with connected(data=world_size) as topology:
        module, optimizer = make(topology, dtype=torch.float16, **options)
        history: list[Any] = []
        for step in (1, 2, 3):
            # Gradients are summed while others are computed: poison what they are computed from, not themselves.
            poison = torch.inf if step == 2 and rank == world_size - 1 else 0.0
            found = train_step(module, optimizer, step, dtype=torch.float16, offset=poison)
            report = optimizer.step(step, weight=found.weight)
            state = optimizer.state()
            assert all(not gradient_of(p).any() for p in module.parameters())
            history.append(
                (
                    parts_of((*module.global_tensors(), *optimizer.global_tensors())),
                    (report.overflow.item(), report.loss_scale.item(), state["updates"]),
                    state["loss_scaler"]["scale"],
                )
            )
        return history


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("world_size", [1, 2])
def test_an_overflow_on_any_rank_leaves_everything_as_it_was_on_all(zero: bool, world_size: int) -> None:
    alone = world_size == 1
    histories = [overflow_at(0, 1, zero)] if alone else run_distributed(overflow_at, world_size, zero)
    for one, skipped, after in histories:
        assert [report for _, report, _ in (one, skipped, after)] == [(0.0, 4.0, 1), (1.0, 4.0, 1), (0.0, 2.0, 2)]
        assert [scale for _, _, scale in (one, skipped, after)] == [4.0, 2.0, 2.0]
        for before, kept, moved in zip(one[0], skipped[0], after[0], strict=True):
            assert before.key == kept.key == moved.key
            assert (before.values == kept.values).all(), before.key
            assert (kept.values != moved.values).any(), before.key


def test_gradients_that_are_not_finite_skip_the_step_in_any_precision() -> None:
    for poison in (torch.inf, -torch.inf, torch.nan):
        module, optimizer = make()
        found = train_step(module, optimizer, 1)
        before = values(module)
        gradient_of(next(module.parameters())).view(-1)[0] = poison
        report = optimizer.step(1, weight=found.weight)
        assert float(report.overflow) == 1.0
        assert all(torch.equal(value, before[key]) for key, value in values(module).items())
        assert optimizer.state()["updates"] == 0


def test_weights_loaded_without_masters_become_the_masters() -> None:
    module, optimizer = make(dtype=torch.bfloat16)
    for tensor in module.global_tensors():
        for _, view in tensor.parts:
            view.fill_(0.75)
    optimizer.refresh()
    optimizer.step(1, weight=torch.zeros((), dtype=torch.float64))
    for value in values(module).values():
        close(value, torch.full_like(value, 0.75 * (1 - RATE * 0.1)), tolerance=2**-8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_trains_alike_in_layouts_up_to_its_rounding(dtype: torch.dtype) -> None:
    model = Model(dtype=dtype, tied=False)
    options: dict[str, Any] = {"loss_scaler": {"initial_scale": 256.0}}
    reference = train_in(model, {}, **options)
    found = train_in(model, {"data": 2, "pipe": 2}, zero=True, **options)
    wide = train_in(Model(dtype=torch.float32, tied=False), {})
    steps = torch.finfo(dtype).eps
    assert found.losses == pytest.approx(reference.losses, rel=4 * steps)
    assert found.losses == pytest.approx(wide.losses, rel=16 * steps)
