"""Tokenize one chunk of the input into a shard: files that are complete if, and only if, their report exists."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from scaling.core import DataError, storage_errors, write_atomically
from scaling.transformer.data.chunks import Chunk
from scaling.transformer.data.encoders import Encoded, Encoder, Engine
from scaling.transformer.data.engine import encoder_of
from scaling.transformer.data.readers import MAX_DOCUMENT_BYTES, BadRecord, PieceReader
from scaling.transformer.data.tokenizer import Tokenizer

BATCH_CHARACTERS = 1 << 20
BATCH_DOCUMENTS = 1024
"""Text that is tokenized in one call: enough to make the call cheap, little enough to hold in memory."""


@dataclass(frozen=True)
class TokenizeOptions:
    """How documents become tokens."""

    tokenizer: Path
    field: str = "text"
    """The key, or column, that holds the text."""
    append_eod: bool = True
    """End each document with the tokenizer's end-of-document token."""
    eod_token: str | None = None
    """The name of that token. None: the tokenizer's own."""
    max_bad: int = 0
    """Bad records that are skipped before the data is refused."""
    max_document_bytes: int = MAX_DOCUMENT_BYTES
    """Longest document, in bytes; a longer one is a bad record."""
    engine: Engine = Engine.AUTO
    """The engine that encodes; `tokenize_files` chooses it."""


@dataclass(frozen=True)
class Loaded:
    """The encoder, and the token after each document, if any."""

    encoder: Encoder
    end: int | None


@dataclass(frozen=True)
class ShardReport:
    """Outcome of tokenizing a chunk."""

    documents: int
    tokens: int
    empty: int
    """Documents without text, which are left out."""
    lines: tuple[int, ...]
    """Lines in each piece of the chunk."""
    bad: tuple[BadRecord, ...]
    """Skipped records, their lines counted from the start of their piece."""
    complete: bool = True
    """False: there were more bad records than the whole run may have, so the rest was not read."""


@dataclass(frozen=True)
class Shard:
    """The files of one tokenized chunk."""

    directory: Path
    index: int

    def _path(self, suffix: str) -> Path:
        return self.directory / f"chunk-{self.index:06d}{suffix}"

    def report(self) -> ShardReport | None:
        """Return the report of a finished shard, None where it is still to be made."""
        try:
            content = json.loads(self._path(".json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        bad = tuple(BadRecord(**{**record, "path": Path(record["path"])}) for record in content.pop("bad"))
        return replace(ShardReport(**content, bad=bad), lines=tuple(content["lines"]))

    def documents(self, dtype: np.dtype[Any]) -> Encoded:
        """Return the tokens of the documents, some of which may be empty."""
        with storage_errors(f"reading tokens below {self.directory}"):
            lengths = np.fromfile(self._path(".lengths"), np.int64)
            size = self._path(".tokens").stat().st_size
            if size != lengths.sum() * dtype.itemsize:
                raise DataError(
                    f"{self._path('.tokens')} has {size} bytes, not the {lengths.sum() * dtype.itemsize} of its "
                    f"documents, so it was changed after it was written; remove {self.directory} and start again"
                )
            tokens = np.memmap(self._path(".tokens"), dtype=dtype, mode="r") if size else np.empty(0, dtype)
        return Encoded(tokens, lengths)

    def write(
        self, chunk: Chunk, options: TokenizeOptions, dtype: np.dtype[Any], loaded: Loaded | None = None
    ) -> ShardReport:
        """Tokenize a chunk; nothing counts as written until all of it is.

        `loaded` is the encoder that the options ask for; without it, one is loaded, once per process.

        For a moment, a worker of a killed run may still be writing the same chunk. So each process writes files of its
        own and renames them; both have the same contents.
        """
        counts = _Counts()
        own = {suffix: self._path(f"{suffix}.{os.getpid()}") for suffix in (".tokens", ".lengths")}
        with (
            storage_errors(f"writing tokens below {self.directory}"),
            own[".tokens"].open("wb") as tokens_file,
            own[".lengths"].open("wb") as lengths_file,
        ):
            for batch in _batches(chunk, options, counts, dtype, loaded or _load(options)):
                lengths_file.write(batch.lengths.data)
                tokens_file.write(batch.tokens.data)
                counts.add(batch)
            for handle in (tokens_file, lengths_file):  # before the report that vouches for them
                handle.flush()
                os.fsync(handle.fileno())
            for suffix, path in own.items():
                path.replace(self._path(suffix))
        complete = len(counts.bad) <= options.max_bad
        report = ShardReport(
            counts.documents, counts.tokens, counts.empty, tuple(counts.lines), tuple(counts.bad), complete
        )
        if complete:
            content = json.dumps(asdict(report), default=str)
            with storage_errors(f"writing tokens below {self.directory}"):
                write_atomically(self._path(".json"), content.encode())
        return report


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """Return the smallest type for the tokens of a vocabulary, little-endian everywhere."""
    if vocab_size <= 1 << 16:
        return np.dtype("<u2")
    return np.dtype("<i4") if vocab_size <= 1 << 31 else np.dtype("<i8")


class _Counts:
    def __init__(self) -> None:
        self.documents = self.tokens = self.empty = 0
        self.lines: list[int] = []
        self.bad: list[BadRecord] = []

    def add(self, batch: Encoded) -> None:
        documents = int(np.count_nonzero(batch.lengths))
        self.documents += documents
        self.tokens += batch.tokens.size
        self.empty += batch.lengths.size - documents


def _batches(
    chunk: Chunk, options: TokenizeOptions, counts: _Counts, dtype: np.dtype[Any], loaded: Loaded
) -> Iterator[Encoded]:
    """Yield the token ids of the chunk's documents, some at a time; stop where too many records are bad."""
    waiting: list[str] = []
    characters = 0

    def tokenize() -> Encoded:
        nonlocal characters
        batch = loaded.encoder.encode(waiting).ended(loaded.end, dtype)
        waiting.clear()
        characters = 0
        return batch

    for piece in chunk.pieces:
        reader = PieceReader(piece, field=options.field, max_document_bytes=options.max_document_bytes)
        for document in reader:
            if isinstance(document, BadRecord):
                counts.bad.append(document)
                if len(counts.bad) > options.max_bad:
                    return
                continue
            waiting.append(document)
            characters += len(document)
            if characters >= BATCH_CHARACTERS or len(waiting) >= BATCH_DOCUMENTS:
                yield tokenize()
        counts.lines.append(reader.lines)
    yield tokenize()


@lru_cache(maxsize=1)
def _load(options: TokenizeOptions) -> Loaded:
    tokenizer = Tokenizer.from_file(options.tokenizer, plain_text=True, end_token=options.eod_token)
    return Loaded(encoder_of(options.engine, tokenizer), tokenizer.eos_token_id if options.append_eod else None)
