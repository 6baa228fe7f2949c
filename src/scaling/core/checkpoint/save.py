"""The save protocol: a temporary folder, every rank's share, a vote, the manifest, one rename."""

from __future__ import annotations

import json
import logging
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final, final

import torch

from scaling.core import faults
from scaling.core.checkpoint import folders
from scaling.core.checkpoint.communicator import Communicator
from scaling.core.checkpoint.folders import Retention
from scaling.core.checkpoint.manifest import Manifest
from scaling.core.checkpoint.share import Share, join_shares, write_share
from scaling.core.errors import CheckpointError, ScalingError, StorageError
from scaling.core.storage.json_values import Json

_WHILE_COMPLETING: Final = ("save.before_manifest", "save.mid_manifest", "save.before_rename")
_WHILE_TIDYING: Final = ("save.after_rename", "save.during_retention")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SaveReport:
    """The outcome of a finished save, the same on all ranks; either `path` or `error` is set."""

    step: int
    path: Path | None
    error: ScalingError | None
    seconds: float
    bytes: int


@dataclass(frozen=True)
class Job:
    """One rank's part in one save. An existing `problem` is voted on like one that occurs while writing."""

    step: int
    share: Share = field(default_factory=Share)
    scalars: str = "{}"
    """JSON; only that of rank 0 is stored."""
    ready: Callable[[], None] = lambda: None
    """Blocks until the share's data is in place."""
    problem: Mapping[str, str] | None = None


@final
@dataclass(frozen=True)
class Saver:
    """The save protocol, with the settings that stay the same from save to save."""

    save_dir: Path
    ranks: Communicator
    retention: Retention
    information: Mapping[str, Json]
    max_file_bytes: int

    def run(self, job: Job) -> SaveReport:
        """Save a step. Collective; a failure on any rank is in the report on all ranks. Only a lost rank raises."""
        started = time.monotonic()
        opened = self.ranks.broadcast(self._open(job.step) if self.ranks.rank == 0 else None)
        temporary = None if opened["folder"] is None else self.save_dir / opened["folder"]
        reports = self.ranks.gather(self._write(job, temporary, job.problem or opened["problem"]))
        if reports is None:
            self._pass_points(_WHILE_COMPLETING)
        verdict = self.ranks.broadcast(None if reports is None else self._finish(job, temporary, reports))
        if verdict["problem"] is None and self.ranks.rank:
            self._pass_points(_WHILE_TIDYING)
        error = _error_of(job.step, verdict["problem"])
        path = folders.step_folder(self.save_dir, job.step) if error is None else None
        return SaveReport(job.step, path, error, time.monotonic() - started, verdict["bytes"])

    def _open(self, step: int) -> dict[str, Any]:
        try:
            return {"folder": folders.prepare(self.save_dir, step).name, "problem": None}
        except Exception as error:  # voted on
            return {"folder": None, "problem": problem_of(error)}

    def _write(self, job: Job, temporary: Path | None, problem: Mapping[str, str] | None) -> dict[str, Any]:
        if problem is not None or temporary is None:
            return {"problem": problem}
        try:
            job.ready()
            return {"problem": None, **write_share(temporary, self.ranks.rank, job.share, self.max_file_bytes)}
        except Exception as error:  # voted on
            return {"problem": problem_of(error)}

    def _finish(self, job: Job, temporary: Path | None, reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Do rank 0's part once all ranks have written: decide, make the checkpoint visible, then tidy up."""
        target = folders.step_folder(self.save_dir, job.step)
        problem = _joint_problem(reports)
        size = 0
        if problem is None and temporary is not None:
            try:
                size = self._complete(job, temporary, target, reports)
            except Exception as error:  # reported to all ranks
                problem = problem_of(error)
        if problem is not None:
            if temporary is not None and temporary.exists():
                folders.remove(temporary)
            return {"problem": problem, "bytes": 0}
        try:
            faults.point("save.after_rename", rank=0)
            folders.point_latest(target)
            folders.retain(target, self.retention)
        except Exception as error:  # the checkpoint itself is complete
            _log.warning("%s is saved, but tidying up after it failed: %s", target, error)
        return {"problem": None, "bytes": size}

    def _complete(self, job: Job, temporary: Path, target: Path, reports: Sequence[dict[str, Any]]) -> int:
        files, tensors = join_shares(reports)
        information = {"saved_at": datetime.now(timezone.utc).isoformat(timespec="seconds"), **self.information}
        manifest = Manifest(job.step, files, tensors, json.loads(job.scalars), information)
        if problems := manifest.problems():
            raise CheckpointError("the ranks' parts do not cover the tensors exactly once: " + "; ".join(problems))
        folders.commit(temporary, manifest, target)
        return manifest.bytes

    def _pass_points(self, names: Sequence[str]) -> None:
        """Pass the fault points that rank 0 passes meanwhile, so that any rank can be made to die at any of them."""
        for name in names:
            try:
                faults.point(name, rank=self.ranks.rank)
            except Exception as error:
                _log.warning("ignored, this rank's part of the save is over: %s", error)


def problem_of(error: Exception) -> dict[str, str]:
    """Return an error in the form that ranks vote with."""
    text = str(error) if isinstance(error, (ScalingError, OSError)) else f"{type(error).__name__}: {error}"
    return {"kind": "checkpoint" if isinstance(error, CheckpointError) else "storage", "text": text}


def versions() -> dict[str, Json]:
    """Return the versions that a checkpoint is written with."""
    try:
        own = version("scaling")
    except PackageNotFoundError:
        own = "unknown"
    return {"scaling": own, "torch": torch.__version__, "python": platform.python_version()}


def _joint_problem(reports: Sequence[dict[str, Any]]) -> dict[str, str] | None:
    """Return the ranks' problems as one; ranks with the same text are named together."""
    ranks: dict[str, list[str]] = {}
    kinds = set()
    for rank, report in enumerate(reports):
        if report["problem"] is not None:
            ranks.setdefault(report["problem"]["text"], []).append(str(rank))
            kinds.add(report["problem"]["kind"])
    if not ranks:
        return None
    text = "; ".join(f"rank {', '.join(who)}: {what}" for what, who in ranks.items())
    return {"kind": "checkpoint" if "checkpoint" in kinds else "storage", "text": text}


def _error_of(step: int, problem: Mapping[str, str] | None) -> ScalingError | None:
    if problem is None:
        return None
    kind = CheckpointError if problem["kind"] == "checkpoint" else StorageError
    return kind(f"step {step} was not saved: {problem['text']}")
