"""Loss scaling as a table: what each sequence of overflows does to the scale."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from scaling.core.errors import ConfigError
from scaling.core.optimizer.config import LossScalerConfig
from scaling.core.optimizer.loss_scaler import LossScaler, scaler_state_problems

CPU = torch.device("cpu")


def scaler(*, enabled: bool = True, **options: Any) -> LossScaler:
    return LossScaler(LossScalerConfig.from_dict({"initial_scale": 1024.0, **options}), CPU, enabled=enabled)


def scales_after(subject: LossScaler, steps: str) -> list[float]:
    """Return the scale after each step; `o` is an overflow, `.` a clean step."""
    scales = []
    for step in steps:
        subject.update(torch.tensor(float(step == "o"), dtype=torch.float64))
        scales.append(float(subject.scale))
    return scales


@pytest.mark.parametrize(
    ("options", "steps", "scales"),
    [
        # The first overflow uses up hysteresis, every later one lowers the scale.
        ({"hysteresis": 2}, "ooo", [1024, 512, 256]),
        ({"hysteresis": 1}, "oo", [512, 256]),
        ({"hysteresis": 3}, "oooo", [1024, 1024, 512, 256]),
        # Clean steps in between do not restore it ...
        ({"hysteresis": 2}, "o.o.o", [1024, 1024, 512, 512, 256]),
        # ... unless asked to.
        ({"hysteresis": 2, "consecutive_hysteresis": True}, "o.o.oo", [1024, 1024, 1024, 1024, 1024, 512]),
        # The scale rises at the clean step after `window` of them, and again `window` later.
        ({"window": 2}, "......", [1024, 1024, 2048, 2048, 4096, 4096]),
        ({"window": 1}, "...", [1024, 2048, 4096]),
        # An overflow starts the count anew; raising the scale restores the hysteresis.
        ({"window": 2, "hysteresis": 1}, "..o...", [1024, 1024, 512, 512, 512, 1024]),
        ({"window": 2, "hysteresis": 2}, "o...oo", [1024, 1024, 1024, 2048, 2048, 1024]),
        ({"hysteresis": 1, "min_scale": 300.0}, "oooo", [512, 300, 300, 300]),
        ({"hysteresis": 1, "factor": 4.0, "window": 1}, "o..", [256, 256, 1024]),
    ],
)
def test_the_scale_follows_the_overflows(options: dict[str, Any], steps: str, scales: list[float]) -> None:
    assert scales_after(scaler(**options), steps) == scales


@given(
    steps=st.text("o.", min_size=1, max_size=60),
    window=st.integers(1, 5),
    hysteresis=st.integers(1, 4),
    consecutive=st.booleans(),
)
def test_the_device_does_what_a_program_with_branches_would(
    steps: str, window: int, hysteresis: int, consecutive: bool
) -> None:
    subject = scaler(window=window, hysteresis=hysteresis, consecutive_hysteresis=consecutive, min_scale=4.0)
    scale, left, clean, expected = 1024.0, hysteresis, 0, []
    for step in steps:
        if step == "o":
            if left == 1:
                scale = max(scale / 2, 4.0)
            else:
                left -= 1
            clean = 0
        else:
            if consecutive:
                left = hysteresis
            if clean > 0 and clean % window == 0:
                scale, left = scale * 2, hysteresis
            clean += 1
        expected.append(scale)
    assert scales_after(subject, steps) == expected
    assert subject.state() == {"scale": scale, "hysteresis": left, "clean_steps": clean}


def test_a_restored_scaler_goes_on_where_it_was() -> None:
    steps = "o..o.oo....o"
    whole, first, second = (scaler(window=2, hysteresis=3) for _ in range(3))
    expected = scales_after(whole, steps)
    begun = scales_after(first, steps[:5])
    second.restore(first.state())
    assert begun + scales_after(second, steps[5:]) == expected


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({}, None),
        ({"hysteresis": 0, "clean_steps": 0}, None),
        ({"scale": 0}, "optimizer.loss_scaler.scale is 0, not a number it can have"),
        ({"scale": float("inf")}, "optimizer.loss_scaler.scale is inf, not a number it can have"),
        ({"hysteresis": -1}, "optimizer.loss_scaler.hysteresis is -1, not a number it can have"),
        ({"clean_steps": float("nan")}, "optimizer.loss_scaler.clean_steps is nan, not a number it can have"),
        ({"clean_steps": True}, "optimizer.loss_scaler.clean_steps is True, not a number it can have"),
        ({"hysteresis": None}, "optimizer.loss_scaler.hysteresis is None, not a number it can have"),
    ],
)
def test_a_stored_state_has_numbers_that_a_scaler_can_have(change: dict[str, Any], problem: str | None) -> None:
    assert scaler_state_problems({**scaler().state(), **change}) == ([] if problem is None else [problem])


def test_a_stored_state_is_a_table_which_is_empty_without_scaling() -> None:
    assert scaler_state_problems({}) == []
    assert scaler_state_problems([]) == ["optimizer.loss_scaler is [], not a table"]


def test_a_disabled_scaler_is_one_whatever_happens() -> None:
    subject = scaler(enabled=False)
    assert scales_after(subject, "oo..") == [1.0] * 4
    subject.restore({"scale": 7.0, "hysteresis": 1.0, "clean_steps": 0.0})
    assert float(subject.scale) == 1.0


def test_a_scaler_that_was_not_in_use_leaves_the_next_its_initial_scale() -> None:
    subject = scaler(initial_scale=512.0)
    subject.restore(scaler(enabled=False).state())
    assert float(subject.scale) == 512.0


def test_updates_read_nothing_back_from_the_device() -> None:
    subject, overflow = scaler(), torch.tensor(1.0, dtype=torch.float64)
    refuse = mock.Mock(side_effect=AssertionError("read back"))
    with mock.patch.multiple(Tensor, item=refuse, tolist=refuse, cpu=refuse, __bool__=refuse, __float__=refuse):
        subject.update(overflow)


@pytest.mark.parametrize(("enable", "half", "enabled"), [(None, True, True), (None, False, False), (True, False, True)])
def test_scaling_is_on_for_float16_unless_said_otherwise(enable: bool | None, half: bool, enabled: bool) -> None:
    assert LossScalerConfig(enable=enable).enabled(float16=half) is enabled


def test_a_minimum_above_the_initial_scale_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"min_scale: is 8, above initial_scale \(4\)"):
        LossScalerConfig.from_dict({"initial_scale": 4.0, "min_scale": 8.0})
