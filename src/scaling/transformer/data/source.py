"""Open the data sets that a configuration names, and refuse those its model cannot be trained on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import final

from scaling.core import (
    ConfigError,
    DataError,
    MegatronDataset,
    MemoryMapDocuments,
    Problem,
    TokenDocuments,
    open_documents,
    recorded_eod_token_id,
)
from scaling.transformer.config.data import DataConfig
from scaling.transformer.data.record_kinds import require_kind
from scaling.transformer.data.tokenizer import tokenizer_digest


def missing_files(prefix: Path) -> list[str]:
    """Return the suffixes of the files that every data set has and this one lacks."""
    return [suffix for suffix in (".bin", ".idx") if not os.path.isfile(f"{prefix}{suffix}")]


def recorded_end(data: DataConfig) -> int | None:
    """Return the end-of-document token that `data` names, else the one that its data sets record; None where none does.

    For a legacy data set, which records none, the result is always None.

    Raises:
        ConfigError: `data` names no token and the data sets record different ones, or they record only other ones.
    """
    if data.legacy_dataset:
        return None
    first: dict[int, Path] = {}
    for prefix in [*(data.data_prefixes or ()), *(data.validation_data_prefixes or ())]:
        if (end := recorded_eod_token_id(prefix)) is not None:
            first.setdefault(end, prefix)
    if data.eod_token_id is not None:
        if first and data.eod_token_id not in first:
            other, prefix = next(iter(first.items()))
            raise ConfigError(
                Problem(
                    "data.eod_token_id",
                    f"is {data.eod_token_id}, but the documents of {prefix} end with {other}; remove it, and the data "
                    "tell",
                )
            )
        return data.eod_token_id
    if len(first) > 1:
        told = " and ".join(f"those of {prefix} with {end}" for end, prefix in first.items())
        raise ConfigError(
            Problem(
                "data.eod_token_id",
                f"is not given, and documents end differently: {told}; tokenize the data with the same --eod-token, or "
                "name the one that generation is to stop at",
            )
        )
    return next(iter(first), None)


@final
class Sources:
    """Opener of the data sets of `data`; each has to fit the vocabulary and the tokenizer, where these are known.

    Raises:
        DataError: The tokenizer file is missing or not text.
    """

    def __init__(self, data: DataConfig, *, vocab_size: int | None, vocab_file: Path | None) -> None:
        self._data = data
        self._vocab_size = vocab_size
        self._vocab_file = vocab_file
        self._tokenizer_sha256 = None if vocab_file is None else tokenizer_digest(vocab_file)

    def open(self, prefix: Path) -> TokenDocuments:
        """Open one data set.

        Raises:
            DataError: A file is missing or damaged, or was made for another vocabulary or with another tokenizer.
            StorageError: A file cannot be read.
        """
        in_memory = self._data.load_mmap_index_to_memory
        records = self._data.records
        documents: TokenDocuments
        if self._data.legacy_dataset:
            try:
                documents = MegatronDataset(prefix, in_memory)
            except DataError as error:
                raise DataError(f"{error} (data.legacy_dataset is true)") from error
        else:
            documents = open_documents(prefix, use_mmap=self._data.use_mmap, load_index_to_memory=in_memory)
        require_kind(prefix, documents, self._data)
        # The predecessor's memory maps of records hold lengths among their tokens, so their batches are checked
        # instead.
        if self._vocab_size is not None and (records is None or not records.prompt_lengths):
            documents.check_vocabulary(self._vocab_size)
        recorded = documents.meta.tokenizer_sha256 if isinstance(documents, MemoryMapDocuments) else None
        present = self._tokenizer_sha256
        if recorded is not None and present is not None and present != recorded:
            raise DataError(
                f"{prefix} was made with a tokenizer of SHA-256 {recorded[:16]}..., but that of "
                f"transformer_architecture.vocab_file ({self._vocab_file}) is {present[:16]}...; name the tokenizer "
                "the data was made with, or tokenize the data again with this one."
            )
        return documents
