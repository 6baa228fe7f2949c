"""`scaling generate`: stream text from a checkpoint to the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scaling.transformer import Sampling, TransformerInferenceModule


def generate(
    checkpoint: Annotated[Path, typer.Argument(help="A folder of checkpoints, or one step's folder.")],
    prompt: Annotated[str, typer.Option(help="Text to continue.")],
    max_tokens: Annotated[int, typer.Option(min=1, help="New tokens at the most.")] = 128,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the most likely token each time.")] = 0.8,
    top_k: Annotated[int | None, typer.Option(min=1, help="Draw from the k most likely tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Draw from the likeliest tokens that add up to p.")] = None,
    seed: Annotated[int | None, typer.Option(help="Draw the same text every time.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text. May be given several times.")] = None,
    device: Annotated[str, typer.Option(help="cpu, or cuda for a GPU.")] = "cpu",
) -> None:
    """Continue a text with a trained model, word by word."""
    model = TransformerInferenceModule.from_checkpoint(checkpoint, device=device)
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    typer.echo(prompt, nl=False)
    for piece in model.stream_text(prompt, max_tokens=max_tokens, sampling=sampling, seed=seed, stop=tuple(stop or ())):
        typer.echo(piece, nl=False)
    typer.echo()
