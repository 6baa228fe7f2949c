"""What a run is besides tensors: where it stands, and what must not change when it goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, final

import torch

from scaling.core.checkpoint.resume import FINGERPRINTS, ChangeRules
from scaling.core.config.base import BaseConfig
from scaling.core.errors import CheckpointError
from scaling.core.storage.json_values import is_count


@dataclass
class TrainState:
    """Two integers that say where the run stands; everything else of the data's state follows from them."""

    step: int = 0
    consumed_samples: int = 0

    def advance(self, samples: int) -> None:
        """Take note of one step."""
        self.step += 1
        self.consumed_samples += samples

    def as_dict(self) -> dict[str, int]:
        """Return the state for a checkpoint."""
        return {"step": self.step, "consumed_samples": self.consumed_samples}

    def restore(self, stored: Mapping[str, Any]) -> None:
        """Continue from a state returned by `as_dict`."""
        if problems := train_state_problems(stored):
            raise CheckpointError(
                f"the checkpoint's trainer state is malformed ({'; '.join(problems)}); load another one"
            )
        self.step, self.consumed_samples = stored["step"], stored["consumed_samples"]


def train_state_problems(stored: Any) -> list[str]:
    """Return what keeps a stored value from being a state of the trainer. Pure.

    The samples do not follow from the steps: batch sizes may have changed in between.
    """
    if not isinstance(stored, Mapping):
        return [f"trainer is {stored!r:.100}, not a table"]
    return [
        f"trainer.{name} is {stored.get(name)!r:.100}, not a whole number from 0 to 2^62"
        for name in ("step", "consumed_samples")
        if not is_count(stored.get(name))
    ]


@dataclass(frozen=True)
class RunIdentity:
    """What a checkpoint remembers of the run that wrote it, and which of it must be the same to go on."""

    config: BaseConfig
    """The resolved configuration."""
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    """Digests of what the configuration only points at, such as the training data."""
    rules: ChangeRules = field(default_factory=ChangeRules)
    """What a change means, beyond or instead of what the fields say; fingerprints are settings below `fingerprints`."""
    decided_by: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """For each fingerprint the settings, as dotted paths, that decide it: what a message about it names."""
    free_on_base: Sequence[str] = ()
    """Settings, as dotted paths, that may differ from those of a base that the run trains on."""

    @property
    def change_rules(self) -> ChangeRules:
        """Return what a change of each setting means."""
        return self.rules.over(ChangeRules.of(type(self.config)))

    def as_dict(self) -> dict[str, Any]:
        """Return what is stored and compared."""
        return {**self.config.as_dict(), FINGERPRINTS: dict(self.fingerprints)}


class Metrics(Protocol):
    """Where the numbers of a step go; `MetricWriter` is one."""

    def add(self, step: int, metrics: Mapping[str, float | torch.Tensor]) -> None:
        """Keep the metrics of a step; device scalars are not read yet."""
        ...

    def add_vector(self, step: int, names: Sequence[str], values: torch.Tensor) -> None:
        """Keep metrics of a step that lie in one vector [len(names)], which is not read yet."""
        ...

    def flush(self) -> Mapping[int, Mapping[str, float]]:
        """Read what is on the device in one transfer, write everything kept, and return it by step."""
        ...

    def close(self) -> None:
        """Write what is left and finish."""
        ...


@final
class NoMetrics:
    """Stands for the metrics until they are opened: takes everything and keeps nothing."""

    def add(self, step: int, metrics: Mapping[str, float | torch.Tensor]) -> None:
        """Keep nothing."""

    def add_vector(self, step: int, names: Sequence[str], values: torch.Tensor) -> None:
        """Keep nothing."""

    def flush(self) -> Mapping[int, Mapping[str, float]]:
        """Write nothing."""
        return {}

    def close(self) -> None:
        """Close nothing."""


def due(step: int, interval: int | None) -> bool:
    """Return whether something done every `interval` steps is done after `step`; None = never."""
    return interval is not None and step % interval == 0
