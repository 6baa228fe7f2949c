"""Find the folder of checkpoints meant by a path that is nearly right: a run's folder, `latest`, a misspelt name."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Final

from scaling.core.checkpoint.folders import LATEST, list_steps, step_of
from scaling.core.checkpoint.search import candidates
from scaling.core.config.plain_words import first_of
from scaling.core.errors import CheckpointError, StorageError

LEVELS_BELOW: Final = 2
"""How many levels below a folder are searched for checkpoints: one for a run's folder, two for a folder of runs."""
LOOKED_AT: Final = 1000
"""The most folders that are searched, and the most entries of each, since somebody may name a whole disk."""
NAMED: Final = 8
"""The most folders that a message names."""


def folder_meant(given: Path) -> Path:
    """Return the folder of checkpoints, or the step folder, that a path means.

    A folder without checkpoints means the only folder below it that has some; the file `latest` means the folder that
    it names, and any other file the folder that it is in. Only for callers that read: a run that writes must never take
    another run's folder for its own.

    Raises:
        CheckpointError: There is no such folder, or there are several, which the message names.
        StorageError: The path cannot be read.
    """
    try:
        near = folders_near(given)
        if len(near) == 1:
            return near[0]
        raise CheckpointError(f"there is no checkpoint in {given}{_remedy(given, near)}")
    except OSError as error:
        raise StorageError(f"{given} cannot be searched for checkpoints: {error}") from error


def folders_near(given: Path) -> list[Path]:
    """Return the folders with checkpoints that a path may mean: only the path itself where it has some.

    Raises:
        OSError: The path cannot be read.
    """
    if given.is_file():
        found = _named_by(given) if given.name == LATEST else given.parent
        return [found] if found.is_dir() and candidates(found) else []
    if not given.is_dir():
        return []
    return [given] if candidates(given) else list(islice(_below(given), LOOKED_AT))


def _named_by(latest: Path) -> Path:
    """Return the step folder that a file `latest` names, never one elsewhere; the file itself where it names none."""
    name = _text_of(latest)
    return latest.with_name(name) if Path(name).name == name and step_of(Path(name)) is not None else latest


def _below(top: Path) -> Iterator[Path]:
    """Yield the nearest folders below `top` that have checkpoints, each once, whatever links lead to it."""
    level, seen = [top], {os.path.realpath(top)}
    for _ in range(LEVELS_BELOW):
        deeper: list[Path] = []
        for folder in (folder for parent in level for folder in folders_in(parent)):
            if len(seen) > LOOKED_AT:
                return
            if (target := os.path.realpath(folder)) in seen:
                continue
            seen.add(target)
            with suppress(OSError):  # a folder that cannot be read is not the one meant
                if candidates(folder):
                    yield folder
                else:
                    deeper.append(folder)
        level = deeper


def folders_in(parent: Path) -> list[Path]:
    """Return the folders in another, links last, without names that begin with a dot; empty if it cannot be read."""
    with suppress(OSError), os.scandir(parent) as entries:
        found = [entry for entry in islice(entries, LOOKED_AT) if not entry.name.startswith(".") and entry.is_dir()]
        return [parent / entry.name for entry in sorted(found, key=lambda entry: (entry.is_symlink(), entry.name))]
    return []


def _remedy(given: Path, near: Sequence[Path]) -> str:
    """Return the end of the message that `given` means no checkpoint, or several: what to name instead."""
    if near:
        return f" itself, but there are in {first_of(list(map(str, near)), NAMED)}; name one of them"
    reason = "" if given.is_dir() else f": {given.name} is not a folder"
    if given.name == LATEST and given.is_file():
        reason = f": it should name a folder global_step<N> beside it, but it names {_text_of(given)!r}"
    beside = list_steps(given.parent) if given.name == LATEST or step_of(given) is not None else []
    if beside:
        return f"{reason}; name one of those in {given.parent}: {first_of([folder.name for folder in beside], NAMED)}"
    if not os.path.lexists(given):
        names = [folder.name for folder in folders_in(given.parent)]
        if similar := difflib.get_close_matches(given.name, names, n=NAMED):
            return f"{reason}; did you mean {' or '.join(str(given.with_name(name)) for name in similar)}?"
    return f"{reason}; name the folder of global_step<N> (a run's trainer.save_dir)"


def _text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")[:100].strip()
