"""Tokenizer: text to token ids and back, by a tokenizer file in the format of the `tokenizers` library."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Final, final

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

from scaling.core import DataError, storage_errors, write_atomically
from scaling.transformer.data.end_token import (
    END_OF_TEXT,
    END_TOKENS,
    TOKENIZER_OF_A_MODEL,
    TOKENIZER_OF_A_RUN,
    begin_token_beside,
    end_token_beside,
    listed,
    no_such_token,
)
from scaling.transformer.data.plain_text import PlainText

TOKENIZER_FILE = TOKENIZER_OF_A_RUN
"""Name under which a run leaves its tokenizer beside its checkpoints."""

_TRIED: Final = 8
"""Number of token names that are tried as a text where a tokenizer does not know the simplest texts."""


@final
class Tokenizer:
    """A tokenizer and its serialised form, whose digest identifies it.

    With `plain_text`, for tokenizing data, the names of special tokens in a text are encoded as their letters, so that
    no document can contain an end-of-document token. Otherwise, for prompts, they become the special tokens.

    `end_token` names the token that ends a document. None: files beside `file` name it, or it has a usual name.
    """

    def __init__(
        self,
        serialized: str,
        *,
        name: str = "tokenizer",
        plain_text: bool = False,
        end_token: str | None = None,
        file: Path | None = None,
    ) -> None:
        try:
            self._backend = Backend.from_str(serialized)
        except Exception as error:  # the library raises bare Exceptions
            raise DataError(
                f"{name} is not a tokenizer file ({error}); give a JSON file of the `tokenizers` library, for example "
                "one written by `scaling data train-tokenizer`."
            ) from error
        self._backend.no_padding()
        self._backend.no_truncation()
        self._backend.encode_special_tokens = plain_text
        self._serialized = serialized
        self._name = name
        self._end_token = end_token
        self._file = file
        ends = END_TOKENS if end_token is None else (*END_TOKENS, end_token)
        self._plain = PlainText(self._backend, serialized, ends=ends) if plain_text else None
        self._vocab_size = 1 + max(self._backend.get_vocab(with_added_tokens=True).values(), default=-1)

    @classmethod
    def from_str(cls, serialized: str, *, plain_text: bool = False) -> Tokenizer:
        """Read a tokenizer from the text of its file.

        Raises:
            DataError: The text is not a tokenizer's.
        """
        return cls(serialized, plain_text=plain_text)

    @classmethod
    def from_file(cls, path: Path | str, *, plain_text: bool = False, end_token: str | None = None) -> Tokenizer:
        """Read a tokenizer file.

        Raises:
            DataError: The file is missing or not a tokenizer.
        """
        name = f"tokenizer file {path}"
        return cls(_text_of(path), name=name, plain_text=plain_text, end_token=end_token, file=Path(path))

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """Return the token ids of a text."""
        try:
            ids: list[int] = self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        except Exception as error:  # the library raises bare Exceptions
            raise DataError(
                f"{self._name} cannot encode the text ({error}); give a tokenizer with a token for the unknown"
            ) from error
        return ids if self._plain is None or add_special_tokens else self._plain.keep(ids)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each text, without special tokens."""
        try:
            encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        except Exception as error:  # the library raises bare Exceptions
            raise DataError(
                f"{self._name} cannot encode every text ({error}); give a tokenizer with a token for the unknown"
            ) from error
        if self._plain is None:
            return [encoding.ids for encoding in encodings]
        return [self._plain.keep(encoding.ids) for encoding in encodings]

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of token ids."""
        text: str = self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return text

    def token_id(self, token: str) -> int | None:
        """Return the id of a token given by its name, None where there is no such token."""
        identifier: int | None = self._backend.token_to_id(token)
        return identifier

    def token_name(self, identifier: int) -> str | None:
        """Return the name of a token given by its id, None where there is no such token."""
        name: str | None = self._backend.id_to_token(identifier)
        return name

    def shown_name(self, identifier: int) -> str | None:
        """Return the name of a token, if decoded texts show it; None for special tokens and unknown ids."""
        name = self.token_name(identifier)
        return None if name in self._special_names else name

    @cached_property
    def decoder_steps(self) -> frozenset[str]:
        """The steps of decoding, by their names in the `tokenizers` library; empty: tokens are joined by spaces."""
        decoder = self._backend.decoder
        if decoder is None:
            return frozenset()
        state: dict[str, Any] = json.loads(decoder.__getstate__())
        return frozenset(step["type"] for step in state.get("decoders", [state]))

    @property
    def file(self) -> Path | None:
        """The file that it was read from; files beside it may name its special tokens."""
        return self._file

    @property
    def vocab_size(self) -> int:
        """One more than the highest token id, special and added tokens included: the rows an embedding needs."""
        return self._vocab_size

    def __len__(self) -> int:
        return self._vocab_size

    @cached_property
    def eos_token(self) -> str | None:
        """The name of the end-of-document token; None where nothing names it.

        Raises:
            DataError: The tokenizer does not have the named token, or it is one of ordinary text.
        """
        if self._end_token is not None:
            return self._special(self._end_token, source="--eod-token")
        if self._file is not None and (found := end_token_beside(self._file)) is not None:
            name = found.token if isinstance(found.token, str) else self._backend.id_to_token(found.token)
            return self._special(str(found.token) if name is None else name, source=found.source)
        return next((token for token in END_TOKENS if self.token_id(token) is not None), None)

    @property
    def eos_token_id(self) -> int:
        """The id of the end-of-document token, which also serves as padding.

        Raises:
            DataError: The token is not known, or the tokenizer does not have it.
        """
        number = None if self.eos_token is None else self.token_id(self.eos_token)
        if number is None:
            has = (
                f"its special tokens are {listed(self.added_tokens)}"
                if self.added_tokens
                else "it has no special tokens"
            )
            raise DataError(
                f"{self._name} has no end-of-document token of a usual name (such as {', '.join(END_TOKENS[:4])}), and "
                f"no file beside it names one; {has}. Name it with --eod-token when you tokenize: the data then tell "
                "(where they do not, data.eod_token_id does)."
            )
        return number

    @property
    def added_tokens(self) -> list[str]:
        """The names of the tokens that were added to the model's own, the special ones first."""
        added = self._backend.get_added_tokens_decoder().values()
        return [token.content for token in sorted(added, key=lambda token: not token.special)]

    @property
    def kept_from_texts(self) -> frozenset[int]:
        """The tokens that no text may become: the special ones with `plain_text`, otherwise none."""
        return frozenset() if self._plain is None else self._plain.special

    @cached_property
    def _special_names(self) -> frozenset[str]:
        added = self._backend.get_added_tokens_decoder().values()
        return frozenset(token.content for token in added if token.special)

    def _special(self, token: str, *, source: str) -> str:
        """Return a token that may end documents; an ordinary token may not, where the tokenizer has added ones."""
        added, exists = self.added_tokens, self.token_id(token) is not None
        if not exists or (added and token not in (*added, *END_TOKENS)):
            raise no_such_token(self._name, token, added, ordinary=exists, source=source)
        return token

    @cached_property
    def opening(self) -> tuple[int, ...]:
        """The special tokens that the tokenizer itself puts in front of each text, often none or one."""
        added = set(self.added_tokens)
        letters = (token for token in self._backend.get_vocab() if token not in added)
        for text in ("a", "0", " ", *islice(letters, _TRIED)):
            try:
                plain = self._backend.encode(text, add_special_tokens=False).ids
                whole = self._backend.encode(text).ids
            except Exception:  # the library raises bare ones for a text that it has no tokens for
                continue
            if plain:
                starts = range(len(whole) - len(plain) + 1)
                start = next((start for start in starts if whole[start : start + len(plain)] == plain), 0)
                return tuple(whole[:start])
        return ()

    @cached_property
    def bos_token_id(self) -> int | None:
        """The token that begins a text: put there by the tokenizer, or named by a file beside it; None for neither.

        Raises:
            DataError: A file beside it cannot be understood.
        """
        if self.opening:
            return self.opening[0]
        found = None if self._file is None else begin_token_beside(self._file)
        if found is None:
            return None
        return self.token_id(found.token) if isinstance(found.token, str) else found.token

    @property
    def padding_token_id(self) -> int:
        """The id that fills up rows; never a target."""
        return self.eos_token_id

    @property
    def sha256(self) -> str:
        """The SHA-256 digest of the serialised tokenizer, the bytes of its file."""
        return _digest(self._serialized)

    def to_str(self) -> str:
        """Return the serialised tokenizer."""
        return self._serialized

    def save(self, path: Path | str) -> None:
        """Write the tokenizer file.

        Raises:
            StorageError: The file cannot be written.
        """
        with storage_errors(f"writing the tokenizer file {path}"):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(Path(path), self._serialized.encode())


def tokenizer_digest(path: Path | str) -> str:
    """Return the `sha256` of the tokenizer in a file, without the time that parsing a large one takes.

    Raises:
        DataError: The file is missing or not text.
    """
    return _digest(_text_of(path))


def train_tokenizer(texts: Iterable[str] | Iterator[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE tokenizer, which can encode any text; the same texts give the same tokenizer.

    It has at most `vocab_size` tokens (fewer, where the texts are short), `END_OF_TEXT` being number 0.

    Raises:
        DataError: `vocab_size` leaves no room for the 256 bytes and the end-of-document token.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocab_size <= len(alphabet):
        raise DataError(
            f"a vocabulary of {vocab_size} is too small: the {len(alphabet)} bytes and {END_OF_TEXT} take "
            f"{len(alphabet) + 1}; ask for more."
        )
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(alphabet),
        show_progress=False,
    )
    backend.train_from_iterator(iter(texts), trainer)
    return Tokenizer(backend.to_str(), name="the trained tokenizer")


def _text_of(path: Path | str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except IsADirectoryError as error:
        inside = Path(path) / TOKENIZER_OF_A_MODEL
        found = (
            f"name the file in it: {inside}" if inside.is_file() else f"there is no {inside.name} in it; name the file"
        )
        raise DataError(f"tokenizer file {path} is a folder; {found}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"tokenizer file {path} is not UTF-8 text: {error}") from error
    except OSError as error:
        raise DataError(f"tokenizer file {path} cannot be read: {error.strerror}") from error


def _digest(serialized: str) -> str:
    return hashlib.sha256(serialized.encode()).hexdigest()
