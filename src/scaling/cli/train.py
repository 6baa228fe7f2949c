"""`scaling train`: start a training through the runner."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scaling.transformer import launch_training


def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="The configuration, YAML or JSON.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Changes, such as topology.data_parallel_size=2.", show_default=False),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be started where, and start nothing.")
    ] = False,
) -> None:
    """Train a language model in as many processes as the topology asks for, on the machines that runner names.

    Inside torchrun or srun nothing is started: this process is one of theirs.
    Ctrl-C saves a checkpoint and stops; a second one stops at once.
    """
    _, status = launch_training(config, overrides or (), dry_run=dry_run)
    raise typer.Exit(status)
