"""Folders of checkpoints as users name them: a name that is nearly right is resolved, with a note."""

from __future__ import annotations

from pathlib import Path

import typer

from scaling.core.checkpoint.nearby import folder_meant


def checkpoints_at(given: Path, *, quiet: bool = False) -> Path:
    """Return the folder of checkpoints, or the step folder, that is meant; print a note if it is not the one given.

    `quiet`: print nothing, because another process of the command does.
    """
    meant = folder_meant(given)
    if meant != given and not quiet:
        typer.echo(f"note: taking {meant}", err=True)
    return meant
