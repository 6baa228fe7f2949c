"""Documents of the predecessor's memory maps for fine-tuning: the length of the prompt, the prompt, the completion."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from scaling.transformer.data.records.fields import Refusal
from scaling.transformer.data.records.record import Record


def prompted_record(
    document: npt.NDArray[np.integer[Any]], *, eos_token_id: int, vocab_size: int, every_token: bool = False
) -> Record:
    """Return a document as a record: the completion counts, and so does the end-of-document token, which is not stored.

    `every_token`: the prompt counts as well.

    Raises:
        Refusal: It does not begin with the length of a prompt, has no completion, or has a token outside the
            vocabulary.
    """
    if len(document) == 0:
        raise Refusal("the document is empty")
    prompt, tokens = int(document[0]), np.append(document[1:], eos_token_id).astype(np.int64)
    if not 0 <= prompt < len(document):
        raise Refusal(
            f"the document begins with {prompt}, which is no length of a prompt in its {len(document) - 1} tokens; is "
            "it a memory map of plain text?"
        )
    if prompt == len(document) - 1:
        raise Refusal(f"the document is all prompt, {prompt} tokens: there is nothing to learn")
    outside = np.flatnonzero((tokens < 0) | (tokens >= vocab_size))
    if len(outside):
        place = int(outside[0])
        raise Refusal(f"token {place} is {int(tokens[place])}, which is outside the vocabulary of {vocab_size}")
    weights = np.ones(len(tokens), dtype=np.float32)
    weights[: 0 if every_token else prompt] = 0
    weights[0] = 0  # nothing predicts it
    return Record(tokens, weights)
