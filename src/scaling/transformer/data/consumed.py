"""Find how many samples a run had consumed before a step, from its metrics and checkpoints."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaling.core import METRICS_FILE, CheckpointError, ConfigError, StorageError, list_steps, read_manifest, step_of
from scaling.transformer.config.root import TransformerConfig


@dataclass(frozen=True)
class Beginning:
    """Where a step begins in the order of the whole run."""

    consumed_samples: int
    assumption: str | None = None
    """The assumption that the number rests on; None where metrics or checkpoints of the run prove it."""


@dataclass(frozen=True)
class _Known:
    """The number of samples consumed up to a step, and the file that records it."""

    step: int
    consumed_samples: int
    path: Path | None = None
    """None: no file, since every run begins like this."""

    def __str__(self) -> str:
        if self.path is None:
            return "no sample before step 1"
        return f"{self.consumed_samples} samples up to step {self.step} ({self.path})"


def consumed_before(config: TransformerConfig, step: int) -> Beginning:
    """Return how many samples were consumed before `step`, according to the metrics and checkpoints of the run.

    They record batch sizes that were changed on resume. The count continues from the latest recorded step before this
    one, with the batch size of `config`; the earliest recorded step from this one on has to agree. Where there is none,
    the run is assumed to continue as configured.

    Raises:
        ConfigError: There is no such step, the run took it with another batch size than that of `config`, or metrics
            and checkpoints are of different runs.
        StorageError: The metrics or the checkpoints cannot be read.
    """
    require_step(step)
    size = config.topology.global_batch_size
    known = [_Known(0, 0), *_left_by(config, step)]
    earlier = max(point.step for point in known if point.step < step)
    latest = _agreed(point for point in known if point.step == earlier)
    before = latest.consumed_samples + (step - 1 - latest.step) * size
    later = min((point.step for point in known if point.step >= step), default=None)
    if later is not None:
        following = _agreed(point for point in known if point.step == later)
        if following.consumed_samples != before + (following.step - step + 1) * size:
            raise ConfigError(
                f"the run consumed {latest}, and {following}, but this configuration takes {size} a step "
                "(topology.global_batch_size); use that of the run at this step, or say where the step begins with "
                "--consumed-samples"
            )
    elif latest.step < step - 1:
        steps = f"step {step - 1}" if latest.step == step - 2 else f"steps {latest.step + 1} to {step - 1}"
        return Beginning(
            before,
            f"that {steps} consumed {size} samples each (topology.global_batch_size): neither metrics in "
            "logger.log_dir nor checkpoints in trainer.save_dir tell of them. If they did not, say where the step "
            "begins with --consumed-samples",
        )
    return Beginning(before)


def require_step(step: int) -> None:
    """Refuse a number that no step has.

    Raises:
        ConfigError: It is below 1.
    """
    if step < 1:
        raise ConfigError(f"there is no step {step}; the first is 1")


def _agreed(points: Iterable[_Known]) -> _Known:
    first, *others = points
    for other in others:
        if other.consumed_samples != first.consumed_samples:
            raise ConfigError(
                f"the run consumed {first}, but also {other}, so these are not of one run; correct logger.log_dir, "
                "trainer.save_dir or trainer.load_dir, or say where the step begins with --consumed-samples"
            )
    return first


def _left_by(config: TransformerConfig, step: int) -> Iterator[_Known]:
    """Yield the records that a run of `config` has left; of its checkpoints, the nearest on both sides of `step`."""
    own: list[int] = []
    if config.logger.log_dir is not None:
        noted = _in_metrics(config.logger.log_dir / METRICS_FILE)
        own += [point.step for point in noted]
        yield from noted
    trainer = config.trainer
    if trainer.save_dir is not None:
        folders = _step_folders(trainer.save_dir)
        own += folders
        yield from _next_to(step, folders)
    if trainer.load_dir is not None and trainer.load_context:
        folders = _step_folders(trainer.load_dir)
        # This run began there; later steps than its own first one belong to another run, which continued too.
        yield from _next_to(step, {known: folders[known] for known in folders if not own or known < min(own)})


def _in_metrics(path: Path) -> list[_Known]:
    """Return the records in a run's metrics, whose last line may be unfinished."""
    found: dict[int, _Known] = {}
    try:
        with path.open("rb") as lines:
            for line in lines:
                with suppress(ValueError, KeyError, TypeError):
                    metrics = json.loads(line)
                    known = int(metrics["step"])
                    found[known] = _Known(known, int(metrics["training/consumed_samples"]), path)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error}; give --consumed-samples") from error
    return list(found.values())


def _step_folders(directory: Path) -> dict[int, Path]:
    """Return the step folders of a directory, which may be one itself, by step."""
    try:
        folders = list_steps(directory) or [directory.resolve()]
    except OSError as error:
        raise StorageError(f"{directory} cannot be read: {error}; give --consumed-samples") from error
    return {number: folder for folder in folders if (number := step_of(folder)) is not None}


def _next_to(step: int, folders: dict[int, Path]) -> Iterator[_Known]:
    """Yield the records in the nearest readable checkpoints before and from `step` on; only manifests are read."""
    before = sorted((number for number in folders if number < step), reverse=True)
    after = sorted(number for number in folders if number >= step)
    for numbers in (before, after):
        for number in numbers:
            if (point := _in_checkpoint(number, folders[number])) is not None:
                yield point
                break


def _in_checkpoint(step: int, folder: Path) -> _Known | None:
    """Return the record in a checkpoint; None where it is damaged, or imported and thus without one."""
    try:
        state: Any = read_manifest(folder).scalars["trainer"]
        found = _Known(int(state["step"]), int(state["consumed_samples"]), folder)
    except (CheckpointError, KeyError, TypeError, ValueError):
        return None
    except OSError as error:
        raise StorageError(f"{folder} cannot be read: {error}; give --consumed-samples") from error
    return found if found.step == step else None
