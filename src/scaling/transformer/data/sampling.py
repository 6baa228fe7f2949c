"""Choose an even, reproducible part of many texts, to train a tokenizer on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from scaling.transformer.data.progress import ProgressCallback, silent
from scaling.transformer.data.readers import MAX_DOCUMENT_BYTES, BadRecord, Piece, PieceReader, text_size
from scaling.transformer.data.tokenize import check_budget


def thin(texts: Iterable[str], *, total: int, budget: int) -> Iterator[str]:
    """Leave out texts evenly, so that of `total` characters about `budget` remain; never more."""
    seen = kept = 0
    for text in texts:
        seen += len(text)
        if (kept + len(text)) * max(total, seen) <= seen * budget:
            kept += len(text)
            yield text


def sample_texts(
    files: Sequence[Path],
    *,
    field: str,
    budget: int,
    max_bad: int = 0,
    max_document_bytes: int = MAX_DOCUMENT_BYTES,
    progress: ProgressCallback = silent,
) -> Iterator[str]:
    """Yield an even part of the documents in some files, about `budget` characters.

    Raises:
        DataError: A file cannot be read, or a record is bad and none may be.
        DataRefusedError: More than `max_bad` records are bad.
    """
    sizes = [text_size(path, field=field) for path in files]

    def texts() -> Iterator[str]:
        bad: list[BadRecord] = []
        for number, path in enumerate(files):
            for document in PieceReader(Piece(path), field=field, max_document_bytes=max_document_bytes):
                if isinstance(document, BadRecord):
                    bad.append(document)
                    check_budget(bad, max_bad)
                else:
                    yield document
            progress("reading", sum(sizes[: number + 1]), sum(sizes))

    yield from thin(texts(), total=sum(sizes), budget=budget)
