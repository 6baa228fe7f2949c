"""A command of two processes, one of which says what it was told to: `python -m tests.cli.ranks_command WAY`."""

from __future__ import annotations

import sys
import time

import typer

from scaling.cli.main import ending_with_message
from scaling.cli.ranks import Here, Ranks
from scaling.core.errors import ConfigError, DataRefusedError


def work(here: Here) -> None:
    topology, way = here.topology, sys.argv[1]
    assert topology is not None
    assert topology.layout.world_size == 2
    if way == "mistake":
        raise ConfigError("this is a mistake")
    if way == "refuse" and topology.rank == 1:
        raise DataRefusedError("these are not numbers")
    if here.speaks:
        typer.echo(f"rank {topology.rank} of {topology.layout.world_size}")
    topology.broadcast("said", None)
    if way != "speak":
        time.sleep(600)


def main() -> None:
    with ending_with_message():
        try:
            Ranks(pipe_parallel_size=2).run(work, command="tests.cli.ranks_command")
        except typer.Exit as leaving:
            sys.exit(leaving.exit_code)


if __name__ == "__main__":
    main()
