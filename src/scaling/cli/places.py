"""Folders of checkpoints as users name them: what is nearly right is found, and said."""

from __future__ import annotations

from pathlib import Path

import typer

from scaling.core.checkpoint.nearby import folder_meant


def checkpoints_at(given: Path, *, quiet: bool = False) -> Path:
    """Return the folder of checkpoints, or the step folder, that is meant; say which where another one was named.

    `quiet`: another process of the command says it.
    """
    meant = folder_meant(given)
    if meant != given and not quiet:
        typer.echo(f"note: taking {meant}", err=True)
    return meant
