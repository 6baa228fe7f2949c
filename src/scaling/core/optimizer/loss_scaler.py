"""Dynamic loss scaling for float16, kept and updated on the device."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor

from scaling.core.optimizer.config import LossScalerConfig


@final
class LossScaler:
    """A scale with which small gradients survive float16 (Micikevicius et al., arXiv:1710.03740, section 3.2).

    A step whose gradients are not finite is skipped. After `hysteresis` of them the scale is divided by `factor`; after
    `window` clean steps it is multiplied. The numbers are device tensors: nothing is read back to decide.
    """

    def __init__(self, config: LossScalerConfig, device: torch.device, *, enabled: bool) -> None:
        self.config = config
        self.enabled = enabled
        initial = config.initial_scale if enabled else 1.0
        self.scale = torch.tensor(initial, dtype=torch.float64, device=device)
        self._hysteresis = torch.tensor(float(config.hysteresis), dtype=torch.float64, device=device)
        self._clean_steps = torch.zeros((), dtype=torch.float64, device=device)

    def update(self, overflow: Tensor) -> None:
        """Update the scale after a step; `overflow` is 0-d, 1.0 where its gradients were not finite."""
        if not self.enabled:
            return
        config, bad = self.config, overflow > 0
        exhausted = bad & (self._hysteresis <= 1)
        due = ~bad & (self._clean_steps > 0) & (self._clean_steps.remainder(config.window) == 0)
        lowered = (self.scale / config.factor).clamp_min(config.min_scale)
        self.scale = torch.where(exhausted, lowered, torch.where(due, self.scale * config.factor, self.scale))
        refill = due | ~bad if config.consecutive_hysteresis else due
        left = torch.where(bad & ~exhausted, self._hysteresis - 1, self._hysteresis)
        self._hysteresis = torch.where(refill, torch.full_like(left, float(config.hysteresis)), left)
        self._clean_steps = torch.where(bad, torch.zeros_like(self._clean_steps), self._clean_steps + 1)

    def state(self) -> dict[str, float]:
        """Return the state as plain numbers (reads the device); empty where the scaler is not in use.

        A run that continues in float16 then starts from its own initial scale, not from an untested scale of 1.
        """
        if not self.enabled:
            return {}
        names = ("scale", "hysteresis", "clean_steps")
        values = torch.stack([self.scale, self._hysteresis, self._clean_steps]).tolist()
        return dict(zip(names, values, strict=True))

    def restore(self, state: dict[str, float]) -> None:
        """Continue from a state returned by `state`."""
        if self.enabled and state:
            self.scale.fill_(state["scale"])
            self._hysteresis.fill_(state["hysteresis"])
            self._clean_steps.fill_(state["clean_steps"])


def scaler_state_problems(stored: Any) -> list[str]:
    """Return why a stored value is not a valid state of a loss scaler, in use or not. Pure."""
    if not isinstance(stored, Mapping):
        return [f"optimizer.loss_scaler is {stored!r:.100}, not a table"]
    if not stored:
        return []
    found = []
    for name in ("scale", "hysteresis", "clean_steps"):
        value: Any = stored.get(name)
        if type(value) not in (int, float) or not 0 <= value <= sys.float_info.max or (name == "scale" and not value):
            found.append(f"optimizer.loss_scaler.{name} is {value!r:.100}, not a number it can have")
    return found
