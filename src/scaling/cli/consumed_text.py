"""Show the samples that a training step consumes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import typer

from scaling.cli.token_text import token_text, weighed_text
from scaling.transformer.config.root import TransformerConfig
from scaling.transformer.data.consumed import consumed_before
from scaling.transformer.data.load import load_datasets
from scaling.transformer.data.prepare import prepare_data
from scaling.transformer.data.progress import ConsoleProgress
from scaling.transformer.data.tokenizer import Tokenizer
from scaling.transformer.data.trace import ConsumedSample, samples_of_step


def say_step(config: Path, overrides: Sequence[str], *, step: int, consumed_samples: int | None) -> None:
    """Show the samples of a step: text, documents and offsets."""
    loaded = TransformerConfig.from_yaml(config, overrides, quiet=True)
    with ConsoleProgress() as progress:
        prepared = prepare_data(loaded, progress=progress)
    train, _ = load_datasets(prepared)
    if consumed_samples is None:
        beginning = consumed_before(prepared, step)
        consumed_samples = beginning.consumed_samples
        if beginning.assumption is not None:
            typer.echo(f"note: this assumes {beginning.assumption}", err=True)
    vocab_file = prepared.transformer_architecture.vocab_file
    decoder = None if vocab_file is None else Tokenizer.from_file(vocab_file)
    for consumed in samples_of_step(prepared, train, step, consumed_samples=consumed_samples):
        _show(consumed, decoder)


def _show(consumed: ConsumedSample, decoder: Tokenizer | None) -> None:
    sample = consumed.sample
    typer.echo(
        f"=== sample {consumed.position} (micro-batch {consumed.micro_batch}, data-parallel rank "
        f"{consumed.data_parallel_rank}): sequence {consumed.index} of {sample.source}"
    )
    weights = np.concatenate([np.zeros(1, np.float32), sample.weights])
    for (number, start, stop), first in sample.pieces():
        typer.echo(f"--- {sample.unit} {number}, tokens {start} to {stop - 1}")
        place = slice(first, first + stop - start)
        if sample.unit == "record":
            typer.echo(weighed_text(sample.tokens[place], weights[place], decoder))
        else:
            typer.echo(token_text(sample.tokens[place], decoder))
