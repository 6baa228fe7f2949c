"""Read token documents from a memory map: one file of tokens, one of (start, size) pairs, one that describes both.

`<prefix>.bin` holds the tokens of all documents, one after another and without gaps; `<prefix>.idx` holds two integers
per document, its first token and its number of tokens; `<prefix>.meta.json` holds types, counts and digests. Records
have a weight for each token, in the same order, in `<prefix>.weights`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from scaling.core.data.documents import (
    ArrayElements,
    Elements,
    Integers,
    TokenDocuments,
    damaged,
    extremes,
    file_size,
    with_suffix,
)
from scaling.core.data.memory_map_meta import MemoryMapMeta, integer_dtype, weight_dtype
from scaling.core.data.span_index import ENTRIES_CHECKED_AT_OPENING, SpanIndex


class MemoryMapDocuments(TokenDocuments):
    """The documents of a memory map, however its bytes are fetched."""

    def __init__(
        self, prefix: Path, open_elements: Callable[[Path, np.dtype[Any]], Elements], *, load_index_to_memory: bool
    ) -> None:
        meta_path, tokens_path = with_suffix(prefix, ".meta.json"), with_suffix(prefix, ".bin")
        self.meta = MemoryMapMeta.load(meta_path)
        if self.meta.document_count == 0:
            raise damaged(meta_path, "it promises no documents")
        index_dtype, dtype = integer_dtype(meta_path, self.meta.index_dtype), integer_dtype(meta_path, self.meta.dtype)
        _check_size(with_suffix(prefix, ".idx"), 2 * self.meta.document_count, index_dtype)
        if self.meta.token_count is not None:
            _check_size(tokens_path, self.meta.token_count, dtype)
        pairs = open_elements(with_suffix(prefix, ".idx"), index_dtype)
        self._pairs = pairs.in_memory() if load_index_to_memory else pairs
        tokens = open_elements(tokens_path, dtype)
        self._weights = self._open_weights(prefix, open_elements)
        super().__init__(prefix, tokens, self.meta.document_count, max_token=self.meta.max_token)
        self._index = SpanIndex(pairs.path, count=self.document_count, total=self.token_count, read=self._entries)
        self._index.check_at_opening()
        if self.document_count <= ENTRIES_CHECKED_AT_OPENING:
            _check_digest(self._pairs, self.meta.index_sha256)

    @property
    def made_by(self) -> Mapping[str, str] | None:
        """Return how the documents were made if they are records, which have weights and stay whole; None if not."""
        return self.meta.made_by

    def weights(self, index: int) -> NDArray[np.float32]:
        """Return the weights of the tokens of one record."""
        if self._weights is None:
            raise ValueError(f"{self.prefix} has no weights")
        first, size = self._span(self._position(index))
        return self._weights.read(first, size).astype(np.float32)

    def counted_tokens(self) -> int:
        """Return how many tokens of records have a weight other than 0, in a time that grows with the data."""
        return 0 if self._weights is None else sum(int(np.count_nonzero(block)) for block in self._weights.blocks())

    def sizes(self, start: int = 0, stop: int | None = None) -> Integers:
        """Return the number of tokens of documents `start` to `stop`; the first call checks the whole index."""
        self._index.check()
        start, stop, _ = slice(start, stop).indices(self.document_count)
        sizes: Integers = self._pairs.read(2 * start, 2 * max(stop - start, 0))[1::2]
        return sizes

    def verify(self) -> None:
        """Check every byte: the index is consistent, all tokens are in the recorded range, the digests are right."""
        self._index.check()
        _check_digest(self._pairs, self.meta.index_sha256)
        _check_digest(self._tokens, self.meta.tokens_sha256)
        if self._weights is not None:
            _check_digest(self._weights, self.meta.weights_sha256)
        smallest, largest = extremes(self._tokens.blocks())
        if smallest < 0:
            raise damaged(self._tokens.path, f"it holds token {smallest}, and token ids are not negative")
        if self.max_token is not None and largest != self.max_token:
            raise damaged(self._tokens.path, f"its largest token is {largest}, not {self.max_token}")

    def _entries(self, first: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        pairs = self._pairs.read(2 * first, 2 * (stop - first)).astype(np.int64)
        return pairs[0::2], pairs[1::2]

    def _span(self, index: int) -> tuple[int, int]:
        return self._index.span(index)

    def _identity(self) -> Iterator[bytes]:
        """Yield the recorded digests, which identify the written data, and spots, which reveal later changes."""
        yield f"{self.meta.index_sha256} {self.meta.tokens_sha256}".encode()
        yield from (piece.tobytes() for elements in (self._pairs, self._tokens) for piece in elements.spots())
        if self._weights is not None:
            yield f"{self.meta.weights_sha256} {json.dumps(self.meta.made_by, sort_keys=True)}".encode()
            yield from (piece.tobytes() for piece in self._weights.spots())

    def _open_weights(self, prefix: Path, open_elements: Callable[[Path, np.dtype[Any]], Elements]) -> Elements | None:
        if self.meta.weights_dtype is None:
            return None
        path = with_suffix(prefix, ".weights")
        dtype = weight_dtype(with_suffix(prefix, ".meta.json"), self.meta.weights_dtype)
        _check_size(path, self.meta.token_count or 0, dtype)
        return open_elements(path, dtype)


def _check_size(path: Path, count: int, dtype: np.dtype[Any]) -> None:
    expected, actual = count * dtype.itemsize, file_size(path)
    if actual != expected:
        raise damaged(path, f"it has {actual} bytes, and {count} elements of {dtype.name} take {expected}")


def _check_digest(elements: Elements, recorded: str | None) -> None:
    if recorded is not None and elements.sha256() != recorded:
        raise damaged(elements.path, "its content does not match the digest recorded when it was written")


@final
class MemoryMapDataset(MemoryMapDocuments):
    """The documents of a memory map, paged in by the operating system; a document is a view, not a copy."""

    def __init__(self, prefix: Path | str, load_index_to_memory: bool = False) -> None:
        self._load_index_to_memory = load_index_to_memory
        super().__init__(Path(prefix), ArrayElements.mapped, load_index_to_memory=load_index_to_memory)

    def __reduce__(self) -> tuple[type[MemoryMapDataset], tuple[Path, bool]]:
        """Open the files again in the other process instead of sending their contents."""
        return type(self), (self.prefix, self._load_index_to_memory)
