"""Choose the library that tokenizes text: gigatoken where it gives the tokens of `tokenizers`, else the latter."""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Final

import numpy as np

from scaling.core import DataError
from scaling.transformer.data.encoders import Encoder, Engine, FastEncoder, SlowEncoder, undisputed
from scaling.transformer.data.readers import BadRecord, Piece, PieceReader, splittable
from scaling.transformer.data.tokenizer import Tokenizer

EXTRA: Final = "fast_tokenization"
PLACES: Final = 64
CHARACTERS: Final = 1 << 11
"""A sample of the input: `PLACES` places, evenly spread over its bytes, and about `CHARACTERS` characters at each."""
BEGINNING: Final = 200
"""The beginning of each text, this many characters, is tried too."""
RECORDS: Final = 256
"""Most records that are read at one place: some may be bad, or empty."""
_SHOWN: Final = 40

ODD: Final = (
    *(
        "",
        " ",
        "\n",
        " \n",
        "\n\n\n  \n",
        "\r\n a\r\n\r\nb",
        "\t" * 77 + "a",
        " " * 5000,
        " a" * 3 + "  b   c \u00a0 d",
    ),
    *("I'm I'M don't DON'T we'll'd 's'S 'x", "12345678901234567890 1,234.5e-6 \u00bd\u0663", "a" * 20000, "-=" * 5000),
    *("._;:!?<|>[]{}()#$%&*+/\\@^`~'\"" * 9, "snake_case camelCase HTTPServer ALLCAPS\u00c4\u00d6 \u0130\u017f\u212a"),
    *(
        "e\u0301 \u00e9 \ufb01 \u1e9e \u01c5",
        "\u65e5\u672c\u8a9e\u306e\u6587 \ud55c\uad6d\uc5b4 \u4e2d\u6587\u3002\u3000",
    ),
    *("\u0627\u0644\u0639\u0631\u0628\u064a\u0629 \u05e2\u05d1 \u0939\u093f\u0928\u094d \u0e44\u0e17\u0e22",),
    *("\U0001f642\U0001f469\u200d\U0001f469\u200d\U0001f467\u2764\ufe0f \U0001d4d0\U00020bb7", "\u2028a\u0085b\u200bc"),
    *("\ufeffa\ufffd \x01\x02\x7f", "\uffff\u0378"),
)
"""Texts that tokenizers stumble over."""
STEP: Final = 13
"""One in this many characters of the basic plane is tried, within a word."""


@dataclass(frozen=True)
class Choice:
    """The chosen engine, and why."""

    engine: Engine
    reason: str
    encoder: Encoder = field(compare=False, repr=False)

    def __str__(self) -> str:
        return f"encoded by {self.engine.value}: {self.reason}"


def encoder_of(engine: Engine, tokenizer: Tokenizer) -> Encoder:
    """Return the encoder of an engine; `AUTO`, where none has been chosen, is `tokenizers`."""
    return FastEncoder(tokenizer) if engine is Engine.GIGATOKEN else SlowEncoder(tokenizer)


def choose_engine(
    asked: Engine,
    tokenizer: Tokenizer,
    sample: Callable[[], Iterable[str]],
    *,
    fast: Callable[[Tokenizer], Encoder] = FastEncoder,
) -> Choice:
    """Choose the fastest engine that gives the tokens of `tokenizers` for a sample, for odd texts and for added tokens.

    The same sample, tokenizer and version of gigatoken give the same choice. `sample` is read only where gigatoken is
    installed; `fast` is for tests.

    Raises:
        DataError: gigatoken is asked for, but is not installed, cannot read the tokenizer or gives other tokens.
    """
    if asked is Engine.TOKENIZERS:
        return Choice(Engine.TOKENIZERS, "as asked for", SlowEncoder(tokenizer))
    if importlib.util.find_spec("gigatoken") is None:
        against = f"gigatoken, which is much faster, is not installed (pip install 'scaling[{EXTRA}]')"
    else:
        name = f"gigatoken {version('gigatoken')}"
        odd, others = [*ODD, _characters()], [*sample(), *_with_added(tokenizer)]
        batches = [odd, *(others[start : start + PLACES] for start in range(0, len(others), PLACES))]
        # Short texts are encoded in another way than long ones, so both ways are tried whatever the sample is like.
        batches.append([text[:BEGINNING] for text in odd + others])
        found = _checked(name, tokenizer, batches, fast)
        if not isinstance(found, str):
            number = len(odd) + len(others)
            reason = f"{name} gives the tokens of tokenizers for a sample of {number} texts"
            return Choice(Engine.GIGATOKEN, reason, found)
        against = found
    if asked is Engine.GIGATOKEN:
        raise DataError(f"--engine gigatoken: {against}; choose --engine auto or tokenizers")
    return Choice(Engine.TOKENIZERS, against, SlowEncoder(tokenizer))


def _checked(
    name: str, tokenizer: Tokenizer, batches: Sequence[Sequence[str]], fast: Callable[[Tokenizer], Encoder]
) -> Encoder | str:
    """Return an encoder that uses gigatoken, or the reason against it."""
    slow = SlowEncoder(tokenizer)
    expected = [slow.encode(batch) for batch in batches]  # a text that is refused here is refused with any engine
    try:
        encoder = fast(tokenizer)
        found = [encoder.encode(batch) for batch in batches]
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic in Rust is not a subclass of Exception
        return f"{name} cannot use this tokenizer ({str(error).strip().partition(chr(10))[0]})"
    for batch, right, other in zip(batches, expected, found, strict=True):
        if np.array_equal(right.lengths, other.lengths) and np.array_equal(right.tokens, other.tokens):
            continue
        ours, theirs = (np.split(side.tokens, np.cumsum(side.lengths)[:-1]) for side in (right, other))
        pairs = zip(batch, ours, theirs, strict=False)
        text = next((text for text, one, two in pairs if not np.array_equal(one, two)), batch[-1])
        shown = json.dumps(text[:_SHOWN], ensure_ascii=True) + ("..." if len(text) > _SHOWN else "")
        return f"{name} gives other tokens than tokenizers for {shown}"
    return encoder


def _characters() -> str:
    """Return a text of words with all kinds of characters but disputed ones, which would leave it to `tokenizers`."""
    return "".join(f"a{character}b " for character in undisputed("".join(map(chr, range(1, 0xD800, STEP)))))


def _with_added(tokenizer: Tokenizer) -> list[str]:
    """Return texts that spell the added tokens, in words, alone and side by side."""
    names = tokenizer.added_tokens
    return [f"a{name}b {name} c  {name}{name}\n{name}" for name in names] + ["".join(names), " ".join(names)]


def sample_of(files: Sequence[tuple[Path, int]], *, field: str, max_document_bytes: int) -> Iterator[str]:
    """Yield documents from places spread evenly over files, given with their sizes; long documents are cut off.

    A file that cannot be read from the middle is read from its beginning, further if more of the places are in it.

    Raises:
        DataError: A file is not there, or needs a package that is not installed.
        StorageError: A file cannot be read.
    """
    stops = np.cumsum([size for _, size in files])
    places = (np.arange(PLACES) * int(stops[-1])) // PLACES
    pieces: Counter[Piece] = Counter()
    for place, number in zip(places.tolist(), np.searchsorted(stops, places, side="right").tolist(), strict=True):
        path, size = files[min(number, len(files) - 1)]
        start = max(0, place - (int(stops[min(number, len(files) - 1)]) - size))
        pieces[Piece(path, start) if splittable(path) else Piece(path)] += 1
    for piece, count in pieces.items():
        left = count * CHARACTERS
        reader = iter(PieceReader(piece, field=field, max_document_bytes=max_document_bytes))
        for document, _ in zip(reader, range(count * RECORDS), strict=False):
            if not isinstance(document, BadRecord):
                yield document[:left]
                left -= len(document)
                if left <= 0:
                    break
