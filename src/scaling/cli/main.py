"""The `scaling` command: its sub-commands, and how errors end it."""

from __future__ import annotations

if __name__ == "__main__":  # before anything else is imported, so that signals during the imports are handled
    from scaling.core.runner.early_signals import listen_early

    listen_early()

import contextlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from scaling.cli.imported import imported
from scaling.cli.leaving import leaving_soon
from scaling.cli.many_values import taking_many
from scaling.core.errors import ScalingError
from scaling.core.topology.launch import is_started_by_runner


@dataclass(frozen=True)
class SubCommand:
    """The location of a sub-command, and its one-line description."""

    home: str
    """`module:name` of a typer app, or of the function that is the command."""
    help: str
    many: tuple[str, ...] = ()
    """Options of a function that accept every value up to the next option."""

    def load(self, name: str) -> Any:
        """Import the sub-command and return it as the command `name`."""
        found = imported(self.home)
        holder = typer.Typer(add_completion=False)
        if isinstance(found, typer.Typer):
            holder.add_typer(found, name=name)
        else:
            holder.command(name, cls=taking_many(*self.many))(found)
        command: Any = typer.main.get_command(holder)
        return command.commands[name] if isinstance(command, TyperGroup) else command


SUB_COMMANDS: Mapping[str, SubCommand] = {
    "train": SubCommand("scaling.cli.train:train", "Train a language model."),
    "config": SubCommand("scaling.cli.config:app", "Write a template, a schema for editors, or check a configuration."),
    "data": SubCommand("scaling.cli.data:app", "Make token data sets, look into them, and show what a step consumes."),
    "checkpoint": SubCommand(
        "scaling.cli.checkpoint:app", "List, verify, compare, cast, merge and import checkpoints."
    ),
    "hf": SubCommand("scaling.cli.hf:app", "Import models of Hugging Face, and export to them."),
    "verify-layout": SubCommand(
        "scaling.cli.verify_layout:verify",
        "Prove that a layout is the same training run as one process.",
        many=("--against",),
    ),
    "generate": SubCommand("scaling.cli.generate:generate", "Continue a text with a trained model."),
    "chat": SubCommand("scaling.cli.chat:chat", "Talk to a trained model."),
    "evaluate": SubCommand(
        "scaling.cli.evaluate:evaluate",
        "Measure a trained model: its loss on data, or tasks.",
        many=("--data", "--tasks"),
    ),
    "report": SubCommand("scaling.cli.report:report", "Write a page about one or several runs."),
}


class _Loading(TyperGroup):
    """A group that imports a sub-command when it is called: most need torch or NumPy, and `--help` needs neither."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        if name is not None and name in SUB_COMMANDS:
            command = SUB_COMMANDS[name].load(name)
        return name, command, rest


app = typer.Typer(
    name="scaling",
    cls=_Loading,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train neural networks across many devices.",
)


def _stand_in() -> None:
    """Represent a sub-command in the list of sub-commands."""


for _name, _sub_command in SUB_COMMANDS.items():
    app.command(_name, help=_sub_command.help)(_stand_in)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version  # takes a tenth of the time of `--help`

        typer.echo(version("scaling"))
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    pass


@contextlib.contextmanager
def ending_with_message() -> Iterator[None]:
    """Provide the outermost frame of a command: a `ScalingError` ends it with a message and the error's exit status."""
    try:
        # One of several processes has nothing to clean up, and the process that started it reports how it ended.
        with contextlib.nullcontext() if is_started_by_runner() else leaving_soon():
            yield
    except ScalingError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_status)


def main() -> None:
    """Run the command."""
    with ending_with_message():
        app()


if __name__ == "__main__":
    main()
