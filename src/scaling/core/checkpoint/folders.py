"""The folder protocol: a save becomes visible by one rename, leftovers never block, deletion spares the newest."""

from __future__ import annotations

import logging
import os
import re
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from scaling.core import faults
from scaling.core.checkpoint import manifest as manifests
from scaling.core.checkpoint.manifest import OPTIMIZER_PREFIX as OPTIMIZER_PREFIX
from scaling.core.checkpoint.manifest import Manifest
from scaling.core.checkpoint.verify import quick_problems, read_manifest
from scaling.core.errors import CheckpointError, ConfigError, StorageError
from scaling.core.storage.writing import TEMPORARY_PREFIX, sync_folder, temporary_name, write_atomically, write_durably

LATEST: Final = "latest"
_STEP: Final = re.compile(r"global_step(0|[1-9]\d{0,17})")
_ASIDE: Final = re.compile(r"\.old-(global_step(0|[1-9]\d{0,17}))-[0-9a-f]+")
_OPTIMIZER_FILE: Final = re.compile(r"rank_\d+_optimizer_\d+\.safetensors")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Retention:
    """Which checkpoints are kept; None turns a limit off."""

    keep_last: int | None = None
    """The newest n complete checkpoints are kept, older ones are deleted."""
    keep_every: int | None = None
    """Checkpoints whose step is a multiple of m are kept for ever."""
    keep_optimizer_last: int | None = None
    """Optimizer states are removed from all but the newest n checkpoints: the others can still be evaluated, but not
    resumed exactly."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and value < 1:
                raise ConfigError(f"{name} ({value}) must be at least 1, or null to keep everything")


def step_folder(save_dir: Path, step: int) -> Path:
    """Return the folder of the checkpoint of a step."""
    return save_dir / f"global_step{step}"


def new_step_folder(save_dir: Path, step: int) -> Path:
    """Return the folder for the checkpoint of a step; a `CheckpointError` if something is there already."""
    target = step_folder(save_dir, step)
    if os.path.lexists(target):  # False where this is unknown: the save then says why
        raise CheckpointError(f"{target} exists already; name another directory")
    return target


def step_of(folder: Path) -> int | None:
    """Return the step in a folder's name, None where it is not that of a step folder."""
    found = _STEP.fullmatch(folder.name)
    if found is None and (aside := _ASIDE.fullmatch(folder.name)):
        found = _STEP.fullmatch(aside[1])
    return int(found[1]) if found else None


def list_steps(directory: Path) -> list[Path]:
    """Return the step folders of a directory, newest step first, without checking whether they are complete.

    A folder that was set aside by a save of the same step counts if that save was killed before its own folder took the
    name.
    """
    names = set(os.listdir(directory)) if directory.is_dir() else set()
    found = {int(match[1]): name for name in names if (match := _STEP.fullmatch(name))}
    for name in sorted(names):
        if aside := _ASIDE.fullmatch(name):
            found.setdefault(int(aside[2]), name)
    return [directory / found[step] for step in sorted(found, reverse=True)]


def prepare(save_dir: Path, step: int) -> Path:
    """Clean up after killed saves and create the temporary folder that the step is first written to."""
    save_dir.mkdir(parents=True, exist_ok=True)
    sweep(save_dir)
    temporary = temporary_name(step_folder(save_dir, step))
    temporary.mkdir()
    return temporary


def sweep(save_dir: Path) -> None:
    """Remove what killed saves and deletions left behind; bring back a checkpoint whose replacement never arrived."""
    for path in list(save_dir.iterdir()):
        aside = _ASIDE.fullmatch(path.name)
        if aside and not os.path.lexists(save_dir / aside[1]):
            path.rename(save_dir / aside[1])
        elif aside or path.name.startswith((TEMPORARY_PREFIX, ".trash-")):
            _log.info("removing %s, left behind by an interrupted save", path)
            remove(path)


def commit(temporary: Path, manifest: Manifest, target: Path) -> None:
    """Write the manifest into `temporary` and rename it to `target`, in place of an older save of the same step."""
    data = manifest.encode()
    if len(data) > manifests.MAX_BYTES:
        raise CheckpointError(f"the manifest would have {len(data)} bytes; at most {manifests.MAX_BYTES} are accepted")
    faults.point("save.before_manifest", rank=0)
    write_durably(temporary / manifests.FILE_NAME, data, halfway=lambda: faults.point("save.mid_manifest", rank=0))
    sync_folder(temporary)
    if problems := quick_problems(temporary, manifest):
        raise StorageError(
            f"what was just written is not there any more ({'; '.join(problems[:3])}); does something else write to or "
            f"clean up {target.parent}?"
        )
    faults.point("save.before_rename", rank=0)
    if not os.path.lexists(target):
        temporary.rename(target)
        sync_folder(target.parent)
        return
    aside = target.with_name(f".old-{target.name}-{secrets.token_hex(4)}")
    target.rename(aside)
    try:
        temporary.rename(target)
    except OSError:
        aside.rename(target)
        raise
    sync_folder(target.parent)
    remove(aside)


def point_latest(target: Path) -> None:
    """Name a step folder in the file `latest`: a hint for people and tools, which loading does not rely on."""
    write_atomically(target.with_name(LATEST), target.name.encode())


def retain(newest: Path, retention: Retention) -> None:
    """Delete what `retention` does not keep; `newest` has just been completed, so it and all later steps are spared."""
    current = step_of(newest)
    older = [path for path in list_steps(newest.parent) if path != newest and (step_of(path) or 0) < (current or 0)]
    trash = []
    if retention.keep_last is not None:
        for path in _beyond(older, retention.keep_last - 1):
            if retention.keep_every is None or (step_of(path) or 0) % retention.keep_every:
                away = path.with_name(f".trash-{path.name}-{secrets.token_hex(4)}")
                path.rename(away)
                trash.append(away)
    faults.point("save.during_retention", rank=0)
    for path in trash:
        remove(path)
    if retention.keep_optimizer_last is not None:
        kept = [path for path in older if path.exists() and not path.is_symlink()]  # links lead elsewhere: kept whole
        for path in _beyond(kept, retention.keep_optimizer_last - 1):
            try:
                drop_optimizer(path)
            except (CheckpointError, OSError) as error:
                _log.warning("the optimizer states of %s could not be removed: %s", path, error)


def drop_optimizer(folder: Path) -> None:
    """Remove the optimizer's tensors from a checkpoint, which stays a complete checkpoint at every moment."""
    files = [path for path in folder.iterdir() if _OPTIMIZER_FILE.fullmatch(path.name)]
    if not files:
        return
    manifest = read_manifest(folder).without(OPTIMIZER_PREFIX)
    for rest in folder.glob(f"{TEMPORARY_PREFIX}*"):  # left by a kill at this point
        rest.unlink()
    write_atomically(folder / manifests.FILE_NAME, manifest.encode())
    for path in files:
        if path.name not in manifest.files:
            path.unlink()


def remove(path: Path) -> None:
    """Delete a file, link or folder; what cannot be deleted is left for the next sweep, with a warning."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    except OSError as error:
        _log.warning("%s could not be removed: %s", path, error)


def _beyond(newest_first: Sequence[Path], count: int) -> list[Path]:
    """Return the folders after the first `count` complete ones, judged by names and sizes."""
    kept = 0
    for index, path in enumerate(newest_first):
        if kept == count:
            return list(newest_first[index:])
        kept += _looks_complete(path)
    return []


def _looks_complete(folder: Path) -> bool:
    try:
        return not quick_problems(folder, read_manifest(folder))
    except (CheckpointError, OSError):
        return False
