"""The learning rate as a pure function of the optimizer step: delay, warm-up, then constant, linear, cosine or WSD."""

from __future__ import annotations

import math
from collections.abc import Iterator
from enum import Enum
from typing import Annotated, Any, final

from pydantic import Field

from scaling.core.config.base import BaseConfig
from scaling.core.config.fields import Derived, OnResume
from scaling.core.errors import Problem


class LearningRateDecayStyle(str, Enum):
    """How the learning rate goes from its peak to its minimum."""

    CONSTANT = "constant"
    LINEAR = "linear"
    COSINE = "cosine"
    WSD = "wsd"


class LearningRateSchedulerConfig(BaseConfig):
    """Learning rate over the optimizer steps, of which the first is step 1."""

    on_resume = OnResume.SCHEDULE

    learning_rate: float = Field(default=3e-4, ge=0)
    """Peak, reached at the end of the warm-up."""
    learning_rate_minimum: float = Field(default=0.0, ge=0)
    """Floor, reached at learning_rate_decay_iters and kept from there on."""
    learning_rate_decay_style: Annotated[LearningRateDecayStyle, Derived()] = LearningRateDecayStyle.CONSTANT
    """constant, linear, cosine, or wsd (constant, then linear over the last learning_rate_cooldown_steps). null:
    cosine if learning_rate_decay_iters is given, else constant."""
    learning_rate_decay_iters: Annotated[int, Derived(null_in_template=False)] = Field(default=0, ge=0)
    """Step at which the minimum is reached, warm-up and delay included; usually trainer.train_iterations. 0 or null for
    constant."""
    learning_rate_warmup_steps: int = Field(default=0, ge=0)
    """Steps over which the rate rises linearly from 0 to the peak. 0: off."""
    learning_rate_warmup_delay_steps: int = Field(default=0, ge=0)
    """Steps at the start with a rate of 0, before the warm-up. 0: off."""
    learning_rate_cooldown_steps: int = Field(default=0, ge=0)
    """Steps of linear decay that end at learning_rate_decay_iters; for wsd only. 0: off."""

    @classmethod
    def prepare(cls, given: dict[str, Any]) -> Iterator[Problem]:
        """Decay by default only where the end of the decay is known."""
        decays = given.get("learning_rate_decay_iters", 0) > 0
        default = LearningRateDecayStyle.COSINE if decays else LearningRateDecayStyle.CONSTANT
        given.setdefault("learning_rate_decay_style", default)
        yield from ()

    def problems(self) -> Iterator[Problem]:
        """Check that the phases follow each other."""
        style, end = self.learning_rate_decay_style, self.learning_rate_decay_iters
        rising = self.learning_rate_warmup_delay_steps + self.learning_rate_warmup_steps
        falling = self.learning_rate_cooldown_steps
        if self.learning_rate_minimum > self.learning_rate:
            yield Problem(
                "learning_rate_minimum",
                f"is {self.learning_rate_minimum:g}, above learning_rate ({self.learning_rate:g}); lower it",
            )
        if style is not LearningRateDecayStyle.WSD and falling > 0:
            yield Problem(
                "learning_rate_cooldown_steps",
                f"is {falling}, but only wsd has a cool-down; set learning_rate_decay_style to wsd or remove it",
            )
        if style is LearningRateDecayStyle.CONSTANT:
            return
        if end == 0 and self.learning_rate == self.learning_rate_minimum:
            return  # it decays to the value that it has already
        if end == 0:
            yield Problem(
                "learning_rate_decay_iters",
                f"is needed for {style.value}: the step at which the minimum is reached, usually "
                "trainer.train_iterations",
            )
        elif style is LearningRateDecayStyle.WSD and falling == 0:
            yield Problem(
                "learning_rate_cooldown_steps",
                f"is needed for wsd: how many steps before learning_rate_decay_iters ({end}) the decay starts, for "
                f"example {max(1, end // 5)}",
            )
        elif rising + falling > end:
            phases = [
                f"{name} ({value})"
                for name, value in (
                    ("learning_rate_warmup_delay_steps", self.learning_rate_warmup_delay_steps),
                    ("learning_rate_warmup_steps", self.learning_rate_warmup_steps),
                    ("learning_rate_cooldown_steps", falling),
                )
                if value
            ]
            yield Problem(
                "learning_rate_decay_iters",
                f"is {end}, but must be at least {' + '.join(phases)} = {rising + falling}; raise it, or shorten them",
            )

    def notes(self) -> Iterator[Problem]:
        """Yield the settings with which nothing is learnt."""
        if self.learning_rate == 0:
            yield Problem("learning_rate", "is 0: nothing is learnt by it")


def steps_at_zero(config: LearningRateSchedulerConfig, target: int) -> int:
    """Return how many steps of a training that ends at step `target` come after the rate has decayed to 0."""
    if config.learning_rate_decay_style is LearningRateDecayStyle.CONSTANT or config.learning_rate_minimum > 0:
        return 0
    return max(0, target - config.learning_rate_decay_iters)


@final
class LearningRateScheduler:
    """The learning rate of any step, computed without state."""

    def __init__(self, config: LearningRateSchedulerConfig) -> None:
        self.config = config

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of optimizer step `step`; the first step is 1."""
        config = self.config
        peak, minimum, end = config.learning_rate, config.learning_rate_minimum, config.learning_rate_decay_iters
        warmup, delay = config.learning_rate_warmup_steps, config.learning_rate_warmup_delay_steps
        if step <= delay:
            return 0.0
        if step <= delay + warmup:
            return peak * (step - delay) / warmup
        if config.learning_rate_decay_style is LearningRateDecayStyle.CONSTANT:
            return peak
        if step >= end:
            return minimum
        start = delay + warmup
        match config.learning_rate_decay_style:
            case LearningRateDecayStyle.COSINE:
                remaining = 0.5 * (1 + math.cos(math.pi * (step - start) / (end - start)))
            case LearningRateDecayStyle.LINEAR:
                remaining = 1 - (step - start) / (end - start)
            case LearningRateDecayStyle.WSD:
                remaining = min(1.0, (end - step) / config.learning_rate_cooldown_steps)
        return minimum + remaining * (peak - minimum)
