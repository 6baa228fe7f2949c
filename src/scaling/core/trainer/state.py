"""The state of a run besides tensors: its progress, and what must not change when it resumes."""

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
    """The progress of a run as two integers, from which the rest of the data's state follows."""

    step: int = 0
    consumed_samples: int = 0

    def advance(self, samples: int) -> None:
        """Count one step."""
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
    """Return why a stored value is not a valid state of the trainer. Pure.

    The number of samples does not follow from the steps: batch sizes may have changed in between.
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
    """The settings that a checkpoint keeps of its run, and which of them must be the same to resume."""

    config: BaseConfig
    """The resolved configuration."""
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    """Digests of data that the configuration only points to, such as the training data."""
    rules: ChangeRules = field(default_factory=ChangeRules)
    """What changes mean, in addition to or instead of the rules of the fields; fingerprints are settings below
    `fingerprints`."""
    decided_by: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """For each fingerprint, the settings (as dotted paths) that decide it; a message about it names them."""
    free_on_base: Sequence[str] = ()
    """Settings, as dotted paths, that may differ from those of a base that the run trains on."""

    @property
    def change_rules(self) -> ChangeRules:
        """Return what a change of each setting means."""
        return self.rules.over(ChangeRules.of(type(self.config)))

    def as_dict(self) -> dict[str, Any]:
        """Return the settings and fingerprints that are stored and compared."""
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
    """A placeholder for the metrics until they are opened: it accepts everything and keeps nothing."""

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
    """Return whether something that is due every `interval` steps is due after `step`; None: never."""
    return interval is not None and step % interval == 0
