"""`scaling generate`: stream text from a checkpoint to the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scaling.cli.places import checkpoints_at
from scaling.core import ConfigError
from scaling.transformer import Opened, Sampling, TransformerInferenceModule
from scaling.transformer.data.tokenizer import TOKENIZER_FILE

_NAME = "adapter-option"
"""Of the adapter that is named beside CHECKPOINT, which may have one of its own that is called as that one is."""


def generate(
    checkpoint: Annotated[
        Path,
        typer.Argument(metavar="CHECKPOINT", help="A folder of checkpoints, one step's folder, or a run's folder."),
    ],
    prompt: Annotated[str, typer.Option(metavar="TEXT", help="Text to continue.")],
    max_tokens: Annotated[int, typer.Option(min=1, metavar="N", help="Stop after so many new tokens.")] = 128,
    temperature: Annotated[
        float,
        typer.Option(
            min=0.0, metavar="T", help="The higher, the more varied; 0 takes the most likely token each time."
        ),
    ] = 0.8,
    top_k: Annotated[int | None, typer.Option(min=1, metavar="K", help="Draw from the k most likely tokens.")] = None,
    top_p: Annotated[
        float | None,
        typer.Option(metavar="P", help="Draw from the most likely tokens that together have probability p."),
    ] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="The same number draws the same text.")] = None,
    stop: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="End before this text. May be given several times.")
    ] = None,
    adapter: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH", help="What a fine-tuning on CHECKPOINT has saved: a step's folder, or its newest."
        ),
    ] = None,
    device: Annotated[
        str,
        # The name is spelled out: one version of typer takes a metavar that is the name in capitals for the option.
        typer.Option("--device", metavar="DEVICE", help="cpu, cuda for a GPU, or cuda:N for the one of number N."),
    ] = "cpu",
) -> None:
    """Continue a text with a trained model, printing it as it comes.

    CHECKPOINT may be that of a fine-tuning, whose base is found by itself.
    """
    checkpoint = checkpoints_at(checkpoint)
    model = TransformerInferenceModule.from_checkpoint(checkpoint, device=device)
    used = Opened.OPENED if adapter is None else model.load_adapter(checkpoints_at(adapter), _NAME)
    if model.tokenizer is None:
        raise ConfigError(
            f"there is no {TOKENIZER_FILE} beside the step folders of {checkpoint}, so that no text can be read or "
            "written; copy the tokenizer of the training (its transformer_architecture.vocab_file) there by that name"
        )
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    pieces = model.stream_text(
        prompt, max_tokens=max_tokens, sampling=sampling, seed=seed, stop=tuple(stop or ()), adapter=used
    )
    first = next(pieces, "")  # raises what is wrong with the arguments, before anything is printed
    typer.echo(prompt + first, nl=False)
    for piece in pieces:
        typer.echo(piece, nl=False)
    typer.echo()
