"""Find the newest checkpoint that is complete and intact, and report which ones were rejected and why."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from scaling.core.checkpoint import manifest as manifests
from scaling.core.checkpoint.communicator import Alone, Communicator
from scaling.core.checkpoint.folders import OPTIMIZER_PREFIX, list_steps, step_of
from scaling.core.checkpoint.manifest import Manifest
from scaling.core.checkpoint.verify import file_problems, quick_problems, read_manifest, share_of
from scaling.core.errors import CheckpointError, ScalingError, StorageError

Check: TypeAlias = Callable[[Manifest], Sequence[str]]
"""Returns further reasons why a checkpoint is unfit for the caller, the same on all ranks; none where it is fit."""

WeightsOnly: TypeAlias = Callable[[Manifest], bool]
"""Returns whether the optimizer's states of a checkpoint will not be read."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoredCheckpoint:
    """A step folder that has been verified, byte for byte unless less was asked for."""

    path: Path
    manifest: Manifest

    @property
    def step(self) -> int:
        """Return the optimizer step after which the checkpoint was saved."""
        return self.manifest.step


@dataclass(frozen=True)
class Rejected:
    """A step folder that cannot be used, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Search:
    """The checkpoint that was found, and all newer folders, which were rejected."""

    directory: Path
    found: StoredCheckpoint | None
    rejected: tuple[Rejected, ...]

    def require(self) -> StoredCheckpoint:
        """Return the checkpoint; without one, raise a `CheckpointError` that says what was rejected."""
        if self.found is not None:
            return self.found
        if not self.rejected:
            raise CheckpointError(f"there is no checkpoint in {self.directory}")
        reasons = "\n".join(f"  - {candidate.path.name}: {candidate.reason}" for candidate in self.rejected)
        raise CheckpointError(f"no checkpoint in {self.directory} is complete and intact:\n{reasons}")


def accept_any(manifest: Manifest) -> Sequence[str]:
    """Ask for nothing beyond a complete and intact folder."""
    return ()


def find_newest(
    directory: Path,
    communicator: Communicator | None = None,
    *,
    weights_only: bool | WeightsOnly = False,
    check: Check = accept_any,
    step: int | None = None,
) -> Search:
    """Verify step folders from the newest on, until one is complete and intact.

    `directory` holds step folders or is one itself. Collective: rank 0 decides on the candidates, all ranks share the
    reading so that each file is read once, and all return the same. Nothing is changed or executed. With
    `weights_only`, files of optimizer states (most of the bytes) are checked by name and size only, for callers that do
    not read them. A problem that `check` finds in a manifest is a reason to reject the folder like any other. With
    `step`, only the folder of that step is examined where there are several.
    """
    ranks = communicator or Alone()
    listed = ranks.broadcast(_list(directory, step) if ranks.rank == 0 else None)
    if listed["problem"] is not None:
        raise StorageError(f"{directory} cannot be searched for checkpoints: {listed['problem']}")
    rejected: list[Rejected] = []
    for name in listed["names"]:
        folder = directory / name
        manifest, report = _examine(folder, ranks, weights_only=weights_only, check=check)
        reports = ranks.gather(report)
        reason = ranks.broadcast(None if reports is None else _verdict(reports))
        if not reason and manifest is not None:
            return Search(directory, StoredCheckpoint(folder, manifest), tuple(rejected))
        rejected.append(Rejected(folder, reason))
        if ranks.rank == 0 and os.path.lexists(folder):  # no warning where a training has removed it meanwhile
            _log.warning("rejected the checkpoint %s: %s", folder, reason)
    return Search(directory, None, tuple(rejected))


def glance(directory: Path) -> Search:
    """Return the newest complete checkpoint, judged by its manifest, names and sizes; no tensor is read.

    Raises an `OSError` where the directory cannot be read.
    """
    rejected: list[Rejected] = []
    for name in candidates(directory):
        folder = directory / name
        try:
            manifest = read_manifest(folder)
            problems = [*name_problems(folder, manifest), *quick_problems(folder, manifest)]
        except (ScalingError, OSError) as error:
            problems = [str(error)]
        if not problems:
            return Search(directory, StoredCheckpoint(folder, manifest), tuple(rejected))
        rejected.append(Rejected(folder, "; ".join(problems)))
    return Search(directory, None, tuple(rejected))


def name_problems(folder: Path, manifest: Manifest) -> list[str]:
    """Return what is wrong with the name of a step folder: it names another step than the folder holds."""
    named = step_of(folder.resolve())
    if named is None or named == manifest.step:
        return []
    return [f"the folder is named {folder.resolve().name}, but it holds step {manifest.step}"]


def is_step_folder(directory: Path) -> bool:
    """Return whether a path is a step folder itself rather than a directory of them."""
    return (directory / manifests.FILE_NAME).exists() or step_of(directory) is not None


def candidates(directory: Path, step: int | None = None) -> list[str]:
    """Return the names of possible checkpoints in a directory, newest first; `.` where it may be one itself.

    With `step`, return only the name of that step where there are several; nothing where the directory does not exist.
    """
    if step is not None and not directory.exists():
        return []
    if is_step_folder(directory):
        return ["."]
    found = [folder.name for folder in list_steps(directory)]
    if step is not None:
        return [name for name in found if step_of(Path(name)) == step]
    return found or (["."] if any(directory.glob("model_state_layer_*.pt")) else [])


def _list(directory: Path, step: int | None) -> dict[str, Any]:
    try:
        return {"names": candidates(directory, step), "problem": None}
    except OSError as error:
        return {"names": [], "problem": str(error)}


def _examine(
    folder: Path, ranks: Communicator, *, weights_only: bool | WeightsOnly, check: Check
) -> tuple[Manifest | None, dict[str, Any]]:
    """Read the manifest and this rank's share of the files; return the manifest with a report for rank 0."""
    try:
        manifest = read_manifest(folder)
        problems = [*name_problems(folder, manifest), *check(manifest)]
        problems += quick_problems(folder, manifest) if ranks.rank == 0 else []
        if not problems:
            few = weights_only(manifest) if callable(weights_only) else weights_only
            wanted = manifest.without(OPTIMIZER_PREFIX) if few else manifest
            problems = file_problems(folder, manifest, share_of(wanted, ranks.rank, ranks.world_size))
        return manifest, {"problems": problems, "digest": manifest.digest}
    except Exception as error:  # a reason for all ranks to reject the folder, whatever it is
        text = str(error) if isinstance(error, (ScalingError, OSError)) else f"{type(error).__name__}: {error}"
        return None, {"problems": [text], "digest": ""}


def _verdict(reports: list[dict[str, Any]]) -> str:
    """Return why the folder is rejected, empty where every rank found it intact."""
    problems = list(dict.fromkeys(problem for report in reports for problem in report["problems"]))
    if not problems and len({report["digest"] for report in reports}) > 1:
        problems = ["the ranks see different folders there; checkpoints need a directory that all of them share"]
    return "; ".join(problems)
