"""The description of a run at its start, and the events of the trainer besides those that follow from metrics."""

from __future__ import annotations

import logging
from pathlib import Path

from scaling.core.checkpoint.save import SaveReport
from scaling.core.errors import ScalingError
from scaling.core.logging.events import Event, EventKind
from scaling.core.storage.json_values import Json
from scaling.core.topology.layout import Axis
from scaling.core.training.learner import Learner


def described(learner: Learner) -> str:
    """Return a description: this rank's number of parameters, the layout and the device."""
    topology = learner.topology
    count = sum(parameter.numel() for parameter in learner.module.parameters())
    whose = "" if topology.layout.world_size == 1 else " on this rank"
    usual = (Axis.PIPE, Axis.DATA, Axis.MODEL)
    sizes = [f"{axis.value} {topology.size(axis)}" for axis in Axis if axis in usual or topology.size(axis) > 1]
    return f"{count:,} parameters{whose}, {' x '.join(sizes)} on {topology.device}"


def started(step: int, *, attempt: int, resumed_from: Path | None, total_steps: int, world_size: int) -> Event:
    """Return the event of a start, without a text: the code that loads a checkpoint logs what the run resumes from.

    `attempt` counts the starts of one command from 1; `step` is the last step that is not trained again.
    """
    fields: dict[str, Json] = {
        "attempt": attempt,
        "resumed_from": None if resumed_from is None else str(resumed_from),
        "total_steps": total_steps,
        "world_size": world_size,
    }
    return Event(kind=EventKind.STARTED, step=step, fields=fields, said="")


def checkpoint_saved(report: SaveReport) -> Event:
    """Return the event of a checkpoint that is complete."""
    fields: dict[str, Json] = {"seconds": round(report.seconds, 3), "path": str(report.path)}
    return Event(kind=EventKind.CHECKPOINT, step=report.step, fields=fields)


def save_failed(step: int, error: ScalingError, *, then: str) -> Event:
    """Return the event of a save that failed while training continues; `then` says what follows."""
    return Event(
        kind=EventKind.CHECKPOINT_FAILED,
        step=step,
        fields={"reason": str(error)},
        level=logging.ERROR,
        said=f"a checkpoint was not written, training goes on: {error}; {then}",
    )


def leaving(step: int, reason: str, *, saves: bool) -> Event:
    """Return the event of a run that leaves before its end because it was asked to."""
    what = "saving" if saves else "nothing is saved, trainer.save_dir is null"
    return Event(
        kind=EventKind.LEAVING,
        step=step,
        fields={"reason": reason},
        level=logging.WARNING,
        said=f"asked to leave ({reason}) after step {step}: {what}",
    )
