"""Load the newest checkpoint of a folder that a training saves into, and removes old ones from, meanwhile."""

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
"""How often the newest may be removed while it is read: whoever reads so slowly for so long had better copy it."""


def load_newest(directory: Path, load: Callable[[StoredCheckpoint], T], communicator: Communicator | None = None) -> T:
    """Return what `load` makes of the newest complete and intact checkpoint, whose optimizer states are not verified.

    Where the step folder that was found is removed before `load` is done, or other files take the place of those in it,
    what `load` raises is passed over, and it is called again with what is the newest then. Where `directory` is one
    step folder, that is a `CheckpointError`. Collective: all ranks call it alike, and `load` is called on all alike.
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
    """Return whether the files that were found are not all there any more."""
    try:
        manifest = read_manifest(stored.path)
        return manifest.digest != stored.manifest.digest or bool(quick_problems(stored.path, manifest))
    except (ScalingError, OSError):
        return True


def _state(directory: Path) -> dict[str, tuple[int, int]]:
    """Return what tells the checkpoints of a directory from those of another moment."""
    state = {}
    with suppress(OSError):
        for name in candidates(directory):
            with suppress(OSError):
                found = os.stat(directory / name / manifests.FILE_NAME)
                state[name] = found.st_ino, found.st_mtime_ns
    return state
