"""Check whether texts are enough for a sequence; for few documents this is known before any process starts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from scaling.core import Problem, TokenDocuments
from scaling.transformer.config.architecture import TransformerArchitectureConfig
from scaling.transformer.config.data import DataConfig
from scaling.transformer.data.packing import Packing
from scaling.transformer.data.split import Part, Split

FEW: Final = 4096
"""Most documents whose lengths are checked here; more than these are hardly ever too short, and take longer."""


def packing_of(data: DataConfig, architecture: TransformerArchitectureConfig, *, drop_last: bool) -> Packing:
    """Return how the configuration cuts documents into sequences."""
    return Packing(
        architecture.sequence_length,
        only_full_sequences=data.only_full_sequences,
        allow_incomplete_sequences_every_n=data.allow_incomplete_sequences_every_n,
        drop_last=drop_last,
    )


def too_little(name: str, documents: int, sequence_length: int, split: Split) -> str:
    """Return a message that documents make no sequence, with a remedy."""
    part = "" if split.part is Part.ALL else f" in the {split.part.value} part"
    some = "1 document makes" if documents == 1 else f"{documents} documents make"
    return (
        f"{name}: {some} no sequence of {sequence_length} + 1 tokens{part}; give more text, a shorter "
        "transformer_architecture.sequence_length, or another data.validation_fraction."
    )


def amount_problems(
    opened: Mapping[str, tuple[Path, TokenDocuments]], data: DataConfig, architecture: TransformerArchitectureConfig
) -> Iterator[Problem]:
    """Yield the data sets of few documents that make no sequence, as `load_datasets` would; `opened` is by setting."""
    held_out = data.validation_fraction > 0 and not data.validation_data_prefixes
    train = Split(Part.TRAIN if held_out else Part.ALL, data.validation_fraction)
    length = architecture.sequence_length

    def is_empty(documents: TokenDocuments, split: Split, *, drop_last: bool) -> bool:
        def lengths(start: int, stop: int) -> NDArray[np.int64]:
            return split.lengths(documents.sizes(start, stop), start)

        return len(documents) <= FEW and not len(
            packing_of(data, architecture, drop_last=drop_last).plan(lengths, len(documents))
        )

    for place, (prefix, documents) in opened.items():
        is_training = place.startswith("data.data_prefixes")
        split = train if is_training else Split()
        if is_empty(documents, split, drop_last=is_training):
            yield Problem(place, too_little(str(prefix), len(documents), length, split))
    rest = Split(Part.VALIDATION, data.validation_fraction)
    if held_out and opened and all(is_empty(documents, rest, drop_last=False) for _, documents in opened.values()):
        prefix, documents = next(iter(opened.values()))
        yield Problem("data.validation_fraction", too_little(str(prefix), len(documents), length, rest))
