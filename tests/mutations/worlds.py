"""Worlds in which a bug is switched on: train with it and say how far that is from what is right."""

from __future__ import annotations

import contextlib
import pickle
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.contract.runs import Job, Reference, Run, differences, served_store, train
from tests.distributed import run_distributed
from tests.mutations.bugs import Bug
from tests.mutations.mutate import mutated

TOLERANCE = 1e-10


@dataclass(frozen=True)
class Trial:
    """One training: with which bug (None: without any), in which layout, and where its numbers are or go."""

    bug: Bug | None
    job: Job
    directory: Path


def perform(rank: int, world_size: int, port: int, trials: bytes) -> list[Run | str]:
    """Train once for each trial; where that fails, return the traceback."""
    found: list[Run | str] = []
    for trial in pickle.loads(trials):
        bug = contextlib.nullcontext() if trial.bug is None else mutated(trial.bug.target, trial.bug.edits)
        with bug:
            try:
                found += train(rank, world_size, port, pickle.dumps([trial.job]), str(trial.directory))
            except NameError:  # the edit itself is wrong, and what it stands for was never tried
                raise
            except Exception:  # on all ranks alike; a bug that stops the training has been noticed
                found.append(traceback.format_exc())
    return found


def run_trials(trials: Sequence[Trial]) -> list[list[Run | str]]:
    """Return what each rank saw, for each trial. All are of one world size."""
    (world_size,) = {trial.job.topology.world_size for trial in trials}
    with served_store() as port:
        by_rank = run_distributed(perform, world_size, port, pickle.dumps(list(trials)), timeout=200)
    return [list(runs) for runs in zip(*by_rank, strict=True)]


def symptoms(reference: Reference, name: str, runs: Sequence[Run | str]) -> list[str]:
    """Return the quantities in which a training is not that of the reference."""
    finished = [run for run in runs if not isinstance(run, str)]
    if len(finished) < len(runs):
        return [next(run for run in runs if isinstance(run, str)).strip().splitlines()[-1]]
    found = differences(reference, name, finished)
    return [quantity for quantity, (relative, _) in found.items() if relative > TOLERANCE]
