"""Open token documents by their prefix, whatever format they are in."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from scaling.core.data.documents import TokenDocuments, exists, with_suffix
from scaling.core.data.file_dataset import FileDataset
from scaling.core.data.megatron import MAGIC, MegatronDataset, beginning
from scaling.core.data.memory_map import MemoryMapDataset
from scaling.core.data.memory_map_meta import MemoryMapMeta
from scaling.core.errors import DataError, StorageError


def open_documents(prefix: Path | str, *, use_mmap: bool = True, load_index_to_memory: bool = False) -> TokenDocuments:
    """Open a memory map, which has a meta file, or else a Megatron data set; anything else is a `DataError`.

    `use_mmap: false` reads a memory map's files with seek and read; a Megatron data set is always mapped.
    """
    prefix = Path(prefix)
    meta_path, index_path = with_suffix(prefix, ".meta.json"), with_suffix(prefix, ".idx")
    if not exists(meta_path) and exists(index_path):
        if (begins := beginning(index_path)) != MAGIC:
            raise DataError(
                f"{meta_path} does not exist, and {index_path} begins with {begins!r}, not with {MAGIC!r} as that of a "
                "Megatron data set, which needs none; copy it from where the other files of the data set come from, or "
                "tokenize again"
            )
        return MegatronDataset(prefix, load_index_to_memory)
    if use_mmap:
        return MemoryMapDataset(prefix, load_index_to_memory)
    return FileDataset(prefix, load_index_to_memory)


def recorded_eod_token_id(prefix: Path | str) -> int | None:
    """Return the token that ends each document according to the data set's record; None where none is recorded.

    Only the meta file is read. A missing or damaged one counts as recording none: opening the data set reports it.
    """
    meta_path = with_suffix(Path(prefix), ".meta.json")
    with suppress(DataError, StorageError):
        return MemoryMapMeta.load(meta_path).eod_token_id
    return None
