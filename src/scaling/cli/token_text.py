"""Tokens as text for a terminal: tokens unknown to the tokenizer, and control characters, stay visible."""

from __future__ import annotations

from itertools import groupby, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scaling.transformer.data.tokenizer import Tokenizer
from scaling.transformer.inference.text import escaped


def token_text(tokens: NDArray[np.integer[Any]], decoder: Tokenizer | None) -> str:
    """Return tokens as text; tokens outside the tokenizer's vocabulary appear as numbers, so that they stand out."""
    ids = [int(token) for token in tokens]
    if decoder is None:
        return " ".join(map(str, ids))
    vocabulary = range(decoder.vocab_size)
    return escaped(
        "".join(
            decoder.decode(list(run), skip_special_tokens=False)
            if known
            else "".join(f"<token {token}>" for token in run)
            for known, run in groupby(ids, key=vocabulary.__contains__)
        )
    )


def weighed_text(tokens: NDArray[np.integer[Any]], weights: NDArray[np.float32], decoder: Tokenizer | None) -> str:
    """Return tokens as text, with a new line wherever their weight in the loss changes, and the weight in front."""
    bounds = [0, *(np.flatnonzero(np.diff(weights)) + 1).tolist(), len(tokens)]
    lines = []
    for start, stop in pairwise(bounds):
        first, *others = token_text(tokens[start:stop], decoder).split("\n")
        lines += [f"{weights[start]:>5g} | {first}", *(f"      | {line}" for line in others)]
    return "\n".join(lines)
