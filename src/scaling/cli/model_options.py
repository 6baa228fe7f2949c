"""Options of commands that name a model, and loading of that model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from scaling.cli.places import checkpoints_at
from scaling.cli.ranks import Here
from scaling.core import ConfigError
from scaling.transformer import Opened, TransformerInferenceModule
from scaling.transformer.data.tokenizer import TOKENIZER_FILE, Tokenizer

_NAME: Final = "adapter-option"
"""Name under which the adapter of --adapter is loaded: an adapter of CHECKPOINT may have the same name of its own."""

CheckpointPath = Annotated[
    Path, typer.Argument(metavar="CHECKPOINT", help="A folder of checkpoints, one step's folder, or a run's folder.")
]
AdapterPath = Annotated[
    Path | None,
    typer.Option(
        "--adapter",
        metavar="PATH",
        help="An adapter that was trained on CHECKPOINT: one step's folder, or a folder of checkpoints: its newest.",
    ),
]
PrecisionName = Annotated[
    str | None,
    typer.Option(
        "--precision",
        metavar="TYPE",
        help="float32, bfloat16, float16 or float64.",
        show_default="that of the training",
    ),
]


def opened_model(
    checkpoint: Path, adapter: Path | None, here: Here, *, precision: str | None
) -> tuple[TransformerInferenceModule, str | Opened]:
    """Return the model of a checkpoint and the adapter to use; print notes on settings in its files that are ignored.

    Collective: all processes of the command.
    """
    quiet = not here.notes
    model = TransformerInferenceModule.from_checkpoint(
        checkpoints_at(checkpoint, quiet=quiet), device=here.device, precision=precision, topology=here.topology
    )
    for note in model.defaults.notes if here.notes else ():
        typer.echo(f"note: {note}", err=True)
    if adapter is None:
        return model, Opened.OPENED
    return model, model.load_adapter(checkpoints_at(adapter, quiet=quiet), _NAME)


def required_tokenizer(model: TransformerInferenceModule, checkpoint: Path) -> Tokenizer:
    """Return the tokenizer of a model; `ConfigError` where it has none."""
    if model.tokenizer is None:
        raise ConfigError(
            f"there is no {TOKENIZER_FILE} beside the step folders of {checkpoints_at(checkpoint, quiet=True)}, so "
            "that no text can be read or written; copy the tokenizer of the training (its "
            "transformer_architecture.vocab_file) there by that name"
        )
    return model.tokenizer
