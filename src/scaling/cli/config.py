"""`scaling config`: write a commented template, a schema for editors, or check a file without starting anything."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Annotated

import typer

from scaling.core.config.fields import ConfigWarning
from scaling.core.config.template_text import template as commented
from scaling.core.errors import ConfigError, ExitStatus
from scaling.transformer.config.environment import TransformerConfigHere
from scaling.transformer.config.notes import notes
from scaling.transformer.config.presets import PRESETS, preset
from scaling.transformer.config.root import TransformerConfig

app = typer.Typer(
    name="config", help="Write a template, a schema for editors, or check a configuration.", no_args_is_help=True
)

Output = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write to this file instead of the terminal.")
]


@app.command()
def template(
    output: Output = None,
    name: Annotated[
        str | None, typer.Option("--preset", metavar="NAME", help=f"The model of this name: {', '.join(PRESETS)}.")
    ] = None,
) -> None:
    """Write every key with its default and meaning, as YAML; with a preset, the values of that model."""
    config = TransformerConfig()
    if name is not None:
        try:
            config = TransformerConfig.from_dict({"transformer_architecture": dict(preset(name))})
        except ConfigError as error:
            typer.echo(str(error), err=True)
            raise typer.Exit(ExitStatus.USER_INPUT) from None
    _write(commented(config), output)


@app.command()
def schema(output: Output = None) -> None:
    """Write the JSON schema, which editors use to complete and check keys.

    In a configuration, # yaml-language-server: $schema=FILE names the schema.
    """
    _write(json.dumps(TransformerConfig.model_json_schema(), indent=2) + "\n", output)


@app.command()
def check(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG", help="The configuration, YAML or JSON.", show_default=False)
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Changes, such as trainer.seed=1.", show_default=False),
    ] = None,
) -> None:
    """Report every problem of a configuration without starting anything. Exit status 2 if there are any."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConfigWarning)
        try:
            loaded = TransformerConfigHere.from_yaml(config, overrides or ())
        except ConfigError as error:
            typer.echo(str(error), err=True)
            raise typer.Exit(ExitStatus.USER_INPUT) from None
    topology = loaded.topology
    typer.echo(
        f"{config} is valid: {topology.world_size} {'process' if topology.world_size == 1 else 'processes'} (pipe "
        f"{topology.pipe_parallel_size}, data {topology.data_parallel_size}, model {topology.model_parallel_size}), "
        f"{topology.global_batch_size} samples of {loaded.transformer_architecture.sequence_length} tokens a step."
    )
    for note in (*(str(warning.message) for warning in caught), *(str(note) for note in notes(loaded))):
        typer.echo(f"  note: {note}")


def _write(text: str, output: Path | None) -> None:
    if output is None:
        typer.echo(text, nl=False)
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        typer.echo(f"cannot write {output}: {error.strerror}", err=True)
        raise typer.Exit(ExitStatus.STORAGE) from None
    typer.echo(f"wrote {output}")
