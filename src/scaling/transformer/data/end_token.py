"""Find the tokens that begin and end a document: by option, by files beside the tokenizer, or by a usual name."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from scaling.core import DataError

END_OF_TEXT: Final = "<|endoftext|>"
"""The end-of-document token of the tokenizers trained here."""

END_TOKENS: Final = (
    "<|end_of_text|>",
    END_OF_TEXT,
    "</s>",
    "<eos>",
    "<|eos|>",
    "[EOS]",
    "<｜end▁of▁sentence｜>",  # noqa: RUF001  # these are its letters
    "<|eot_id|>",
    "<|im_end|>",
)
"""Usual names of end-of-document tokens; the first that a tokenizer knows is used where nothing else names one."""

TOKENIZER_OF_A_MODEL: Final = "tokenizer.json"
"""The tokenizer file of a published model."""
TOKENIZER_OF_A_RUN: Final = "vocab.json"
"""The tokenizer file beside checkpoints. Only for these two names are other files in the folder consulted."""
ORIGIN_FILE: Final = "huggingface.json"
"""The file that an import leaves beside its checkpoint, with the end tokens that the model's configuration names."""

_SOURCES: Final = (
    (ORIGIN_FILE, "eos_token_id"),
    ("tokenizer_config.json", "eos_token"),
    ("special_tokens_map.json", "eos_token"),
    ("generation_config.json", "eos_token_id"),
)
_BEGIN_SOURCES: Final = (("tokenizer_config.json", "bos_token"), ("special_tokens_map.json", "bos_token"))
_NAMED: Final = 8


@dataclass(frozen=True)
class NamedToken:
    """The token that begins or ends a document, as a file names it."""

    token: str | int
    """Its name, or its id."""
    source: str


def end_token_beside(tokenizer_file: Path) -> NamedToken | None:
    """Return the end token that the files of the same model name, by the order of `_SOURCES`; None: no file names one.

    Raises:
        DataError: A file exists but cannot be understood.
    """
    return next(
        _said_beside(tokenizer_file, _SOURCES, what="ends a document", instead=", or name the token with --eod-token"),
        None,
    )


def begin_token_beside(tokenizer_file: Path) -> NamedToken | None:
    """Return the token that the files of the same model name as the beginning of a text; None: no file names one.

    Raises:
        DataError: A file exists but cannot be understood.
    """
    return next(_said_beside(tokenizer_file, _BEGIN_SOURCES, what="begins a text"), None)


def _said_beside(
    tokenizer_file: Path, sources: Iterable[tuple[str, str]], *, what: str, instead: str = ""
) -> Iterator[NamedToken]:
    if tokenizer_file.name not in (TOKENIZER_OF_A_MODEL, TOKENIZER_OF_A_RUN):
        return
    for name, key in sources:
        path = tokenizer_file.parent / name
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError, RecursionError) as error:
            raise DataError(
                f"{path}, which should name the token that {what}, cannot be read ({error}); mend it{instead}"
            ) from error
        value: Any = content.get(key) if isinstance(content, dict) else None
        if isinstance(value, dict):
            value = value.get("content")
        if isinstance(value, list):
            value = next(iter(value), None)
        if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
            yield NamedToken(value, f"{key} in {path}")


def no_such_token(tokenizer: str, token: str, known: Sequence[str], *, ordinary: bool, source: str) -> DataError:
    """Return the error for an end token that a tokenizer lacks or that is ordinary text; it names similar tokens."""
    what = "is an ordinary token of" if ordinary else "is no token of"
    near = difflib.get_close_matches(token, known, n=3, cutoff=0.5)
    if near:
        remedy = f"did you mean {' or '.join(map(repr, near))}?"
    elif known:
        remedy = f"its special tokens are {listed(known)}"
    else:
        remedy = "it has no special tokens"
    return DataError(f"{token!r}, named by {source}, {what} {tokenizer}; {remedy}")


def listed(tokens: Sequence[str]) -> str:
    """Return some names of tokens for a message."""
    more = f" and {len(tokens) - _NAMED} more" if len(tokens) > _NAMED else ""
    return ", ".join(map(repr, tokens[:_NAMED])) + more
