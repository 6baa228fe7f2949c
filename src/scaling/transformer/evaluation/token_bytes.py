"""The number of bytes of text of each token of a tokenizer, so that texts can be measured without decoding them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as Backend
from tokenizers import pre_tokenizers

from scaling.transformer.data.tokenizer import Tokenizer

_BYTE: Final = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_NEIGHBOUR: Final = "a"
"""A token that no decoder changes."""


def token_bytes(tokenizer: Tokenizer) -> NDArray[np.int64]:
    """Return how many UTF-8 bytes each token adds to a text, int64 [vocab_size]; 0 for special tokens and gaps.

    The sum over the tokens of a text is the length of that text, even where tokens cut characters, as those of a
    byte-level vocabulary and the `<0x..>` of a byte fallback do. Other tokens are measured by the tokenizer's decoder,
    between two neighbours. Where a decoder treats the first token of a text differently (SentencePiece writes no space
    in front of it, WordPiece no separating one), the sum is therefore right for the tokens after the first, as targets
    are. Text that a tokenizer does not keep (letter case, spaces around a word of WordPiece) is counted as decoded.
    """
    backend = Backend.from_str(tokenizer.to_str())
    measure = _measure(backend, tokenizer.decoder_steps)
    sizes = np.zeros(tokenizer.vocab_size, np.int64)
    for token, number in backend.get_vocab(with_added_tokens=True).items():
        sizes[number] = measure(token)
    for number, added in backend.get_added_tokens_decoder().items():
        if added.special:
            sizes[number] = 0
        elif "ByteLevel" in tokenizer.decoder_steps:  # its text is its own letters, not the bytes that they stand for
            sizes[number] = len(added.content.encode())
    return sizes


def _measure(backend: Any, steps: frozenset[str]) -> Callable[[str], int]:
    """Return the function from a token of the vocabulary to its bytes."""
    alphabet = frozenset(pre_tokenizers.ByteLevel.alphabet())

    def byte_level(token: str) -> int:
        return len(token) if alphabet.issuperset(token) else len(token.encode())

    def decode(*tokens: str) -> int:
        text: str = " ".join(tokens) if backend.decoder is None else backend.decoder.decode(list(tokens))
        return len(text.encode())

    around = decode(_NEIGHBOUR, _NEIGHBOUR)

    def between(token: str) -> int:
        if "ByteFallback" in steps and _BYTE.fullmatch(token):
            return 1
        return decode(_NEIGHBOUR, token, _NEIGHBOUR) - around

    return byte_level if "ByteLevel" in steps else between
