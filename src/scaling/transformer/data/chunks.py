"""Divide input files into chunks of work, by their sizes alone: the result must not depend on who does the work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scaling.transformer.data.readers import Piece, splittable


@dataclass(frozen=True)
class Chunk:
    """Pieces of files that one worker tokenizes one after the other."""

    index: int
    pieces: tuple[Piece, ...]
    size: int
    """Bytes, for progress."""


def plan_chunks(files: Sequence[tuple[Path, int]], chunk_bytes: int) -> list[Chunk]:
    """Cut files, given with their sizes, into chunks of about `chunk_bytes`, in order.

    Small files share a chunk. A file that cannot be read from the middle is never cut.
    """
    chunks: list[Chunk] = []
    pieces: list[Piece] = []
    size = 0

    def finish() -> None:
        nonlocal pieces, size
        if pieces:
            chunks.append(Chunk(len(chunks), tuple(pieces), size))
            pieces, size = [], 0

    for path, file_size in files:
        if splittable(path) and file_size > chunk_bytes:
            finish()
            for start in range(0, file_size, chunk_bytes):
                stop = min(start + chunk_bytes, file_size)
                pieces, size = [Piece(path, start, stop)], stop - start
                finish()
        else:
            pieces.append(Piece(path))
            size += file_size
            if size >= chunk_bytes:
                finish()
    finish()
    return chunks
