"""The learning rate of every step, against the formulas spelled out."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling.core.errors import ConfigError
from scaling.core.optimizer.lr_schedule import (
    LearningRateDecayStyle,
    LearningRateScheduler,
    LearningRateSchedulerConfig,
    steps_at_zero,
)

PEAK, FLOOR = 3.0, 0.5


def scheduler(style: str, *, delay: int = 0, warmup: int = 0, end: int = 0, cooldown: int = 0) -> LearningRateScheduler:
    return LearningRateScheduler(
        LearningRateSchedulerConfig(
            learning_rate=PEAK,
            learning_rate_minimum=FLOOR,
            learning_rate_decay_style=LearningRateDecayStyle(style),
            learning_rate_decay_iters=end,
            learning_rate_warmup_steps=warmup,
            learning_rate_warmup_delay_steps=delay,
            learning_rate_cooldown_steps=cooldown,
        )
    )


@st.composite
def phases(draw: st.DrawFn) -> dict[str, int]:
    delay, warmup, stable, cooldown = (draw(st.integers(0, 12)) for _ in range(4))
    return {"delay": delay, "warmup": warmup, "cooldown": cooldown, "end": max(1, delay + warmup + stable + cooldown)}


@given(phases(), st.sampled_from(["constant", "linear", "cosine", "wsd"]))
def test_every_step_has_the_rate_of_its_phase(phases: dict[str, int], style: str) -> None:
    delay, warmup, cooldown, end = phases["delay"], phases["warmup"], phases["cooldown"], phases["end"]
    if style == "wsd":
        cooldown = max(1, cooldown)
        end = max(end, delay + warmup + cooldown)
    else:
        cooldown = 0
    rates = scheduler(style, delay=delay, warmup=warmup, end=end, cooldown=cooldown)
    for step in range(1, end + 3):
        if step <= delay:
            expected = 0.0
        elif step <= delay + warmup:
            expected = PEAK * (step - delay) / warmup
        elif style == "constant":
            expected = PEAK
        elif step > end:
            expected = FLOOR
        elif style == "wsd":
            expected = PEAK + (FLOOR - PEAK) * max(0, step - (end - cooldown)) / cooldown
        else:
            passed = (step - warmup - delay) / (end - warmup - delay)
            part = 1 - passed if style == "linear" else 0.5 * (1 + math.cos(math.pi * passed))
            expected = FLOOR + part * (PEAK - FLOOR)
        assert rates.learning_rate(step) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("style", "options", "expected"),
    [
        ("linear", {}, [0, 0, 1.5, 3, 2.375, 1.75, 1.125, 0.5]),
        ("cosine", {}, [0, 0, 1.5, 3, 2.633883, 1.75, 0.866117, 0.5]),
        ("wsd", {"cooldown": 2}, [0, 0, 1.5, 3, 3, 3, 1.75, 0.5]),
    ],
)
def test_a_decay_begins_after_delay_and_warm_up(style: str, options: dict[str, int], expected: list[float]) -> None:
    rates = scheduler(style, delay=2, warmup=2, end=8, **options)
    assert [rates.learning_rate(step) for step in range(1, 9)] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("style", ["linear", "cosine", "wsd"])
def test_the_floor_is_reached_exactly_at_the_end_and_kept(style: str) -> None:
    rates = scheduler(style, warmup=3, end=20, cooldown=5 if style == "wsd" else 0)
    assert rates.learning_rate(3) == PEAK
    assert rates.learning_rate(19) > FLOOR
    assert [rates.learning_rate(step) for step in (20, 21, 10**6)] == [FLOOR] * 3


def test_the_schedule_starts_with_step_one() -> None:
    assert scheduler("constant", warmup=4).learning_rate(1) == PEAK / 4
    assert scheduler("constant", delay=1, warmup=4).learning_rate(1) == 0
    assert scheduler("constant").learning_rate(1) == PEAK


def test_a_delay_without_warm_up_ends_at_the_peak() -> None:
    rates = scheduler("constant", delay=2)
    assert [rates.learning_rate(step) for step in (1, 2, 3)] == [0, 0, PEAK]


@pytest.mark.parametrize("style", ["cosine", "linear"])
def test_a_decay_from_a_rate_to_itself_needs_no_end(style: str) -> None:
    """The predecessor wrote such a schedule into every file it saved."""
    for rate in (0.0, 0.1):
        config = LearningRateSchedulerConfig.from_dict(
            {"learning_rate": rate, "learning_rate_minimum": rate, "learning_rate_decay_style": style}
        )
        assert {LearningRateScheduler(config).learning_rate(step) for step in (1, 2, 1000)} == {rate}


def test_the_rate_decays_by_default_where_the_end_is_known() -> None:
    assert LearningRateSchedulerConfig().learning_rate_decay_style is LearningRateDecayStyle.CONSTANT
    for values in (
        {"learning_rate_decay_iters": 9},
        {"learning_rate_decay_iters": 9, "learning_rate_decay_style": None},
    ):
        config = LearningRateSchedulerConfig.from_dict(values)
        assert config.learning_rate_decay_style is LearningRateDecayStyle.COSINE
    assert LearningRateSchedulerConfig.from_dict({"learning_rate_decay_iters": None}).learning_rate_decay_iters == 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"learning_rate": 1e-3, "learning_rate_minimum": 0.01},
            "learning_rate_minimum: is 0.01, above learning_rate (0.001); lower it",
        ),
        (
            {"learning_rate_cooldown_steps": 3},
            "learning_rate_cooldown_steps: is 3, but only wsd has a cool-down; set learning_rate_decay_style to wsd or "
            "remove it",
        ),
        (
            {"learning_rate_decay_style": "cosine"},
            "learning_rate_decay_iters: is needed for cosine: the step at which the minimum is reached, usually "
            "trainer.train_iterations",
        ),
        (
            {"learning_rate_decay_style": "wsd", "learning_rate_decay_iters": 100},
            "learning_rate_cooldown_steps: is needed for wsd: how many steps before learning_rate_decay_iters (100) "
            "the decay starts, for example 20",
        ),
        (
            {"learning_rate_decay_iters": 10, "learning_rate_warmup_steps": 8, "learning_rate_warmup_delay_steps": 3},
            "learning_rate_decay_iters: is 10, but must be at least learning_rate_warmup_delay_steps (3) + "
            "learning_rate_warmup_steps (8) = 11; raise it, or shorten them",
        ),
        (
            {
                "learning_rate_decay_style": "wsd",
                "learning_rate_decay_iters": 10,
                "learning_rate_warmup_steps": 8,
                "learning_rate_cooldown_steps": 3,
            },
            "learning_rate_decay_iters: is 10, but must be at least learning_rate_warmup_steps (8) + "
            "learning_rate_cooldown_steps (3) = 11; raise it, or shorten them",
        ),
    ],
)
def test_phases_that_do_not_fit_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        LearningRateSchedulerConfig.from_dict(values)
    assert str(raised.value) == message


@pytest.mark.parametrize(
    ("settings", "idle"),
    [
        ({}, 0),
        ({"learning_rate_decay_iters": 10}, 5),
        ({"learning_rate_decay_iters": 15}, 0),
        ({"learning_rate_decay_iters": 20}, 0),
        ({"learning_rate_decay_iters": 10, "learning_rate_minimum": 1e-5}, 0),
    ],
)
def test_steps_after_the_decay_to_zero_are_counted(settings: dict[str, Any], idle: int) -> None:
    config = LearningRateSchedulerConfig.from_dict(settings)
    assert steps_at_zero(config, 15) == idle
    rates = [LearningRateScheduler(config).learning_rate(step) for step in range(1, 16)]
    assert max(0, sum(rate == 0 for rate in rates) - (config.learning_rate_decay_iters in range(1, 16))) == idle
