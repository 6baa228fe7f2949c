"""Load the newest checkpoint of a folder while a training saves into it and removes old checkpoints."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeVar

from scaling.core.checkpoint import manifest as manifests
from scaling.core.checkpoint.communicator import Alone, Communicator
from scaling.core.checkpoint.search import StoredCheckpoint, candidates, find_newest, is_step_folder
from scaling.core.checkpoint.verify import quick_problems, read_manifest
from scaling.core.errors import CheckpointError, ScalingError, StorageError

T = TypeVar("T")

ATTEMPTS: Final = 100
"""How often the newest checkpoint may be removed while it is read: a reader as slow as that should copy it first."""


def load_newest(directory: Path, load: Callable[[StoredCheckpoint], T], communicator: Communicator | None = None) -> T:
    """Return the result of `load` for the newest complete and intact checkpoint; optimizer states are not verified.

    If the step folder is removed or its files are replaced before `load` is done, the error of `load` is dropped, and
    `load` is called again with the checkpoint that is then the newest. Where `directory` is itself a step folder, this
    is a `CheckpointError` instead. Collective: all ranks call this function, and `load` is called on all of them.
    """
    ranks = communicator or Alone()
    is_one = is_step_folder(directory)
    for _ in range(ATTEMPTS):
        before = _state(directory) if ranks.rank == 0 else None
        search = find_newest(directory, ranks, weights_only=True)
        if search.found is None:
            if not ranks.broadcast(ranks.rank == 0 and _state(directory) != before):
                search.require()
            continue
        problem: Exception | None = None
        try:
            loaded = load(search.found)
        except (CheckpointError, StorageError, OSError) as error:
            problem = error
        problems = ranks.gather(None if problem is None else str(problem))
        verdict = ranks.broadcast(None if problems is None else _verdict(search.found, problems))
        if problem is None and verdict["problem"] is None:
            return loaded
        if verdict["removed"] and is_one:
            raise CheckpointError(
                f"{directory} was removed while it was read; name the folder of checkpoints that it was in, to take "
                "the newest"
            ) from problem
        if not verdict["removed"]:
            raise problem or CheckpointError(f"{search.found.path} could not be loaded: {verdict['problem']}")
    raise CheckpointError(
        f"the newest checkpoint in {directory} was removed while it was read, {ATTEMPTS} times; keep more of them "
        "(trainer.keep_last_checkpoints), or save less often"
    )


def _verdict(stored: StoredCheckpoint, problems: list[str | None]) -> dict[str, Any]:
    named = [f"rank {rank}: {problem}" for rank, problem in enumerate(problems) if problem is not None]
    return {"problem": "; ".join(named) or None, "removed": bool(named) and _is_removed(stored)}


def _is_removed(stored: StoredCheckpoint) -> bool:
    """Return whether any of the files that were found has been removed or replaced."""
    try:
        manifest = read_manifest(stored.path)
        return manifest.digest != stored.manifest.digest or bool(quick_problems(stored.path, manifest))
    except (ScalingError, OSError):
        return True


def _state(directory: Path) -> dict[str, tuple[int, int]]:
    """Return the identities of the manifests in a directory, by which a later change is noticed."""
    state = {}
    with suppress(OSError):
        for name in candidates(directory):
            with suppress(OSError):
                found = os.stat(directory / name / manifests.FILE_NAME)
                state[name] = found.st_ino, found.st_mtime_ns
    return state
