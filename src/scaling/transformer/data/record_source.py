"""Records in files: those with weights beside tokens, and the prompts and completions of the predecessor."""

from __future__ import annotations

from typing import Final, final

import numpy as np
from numpy.typing import NDArray

from scaling.core import DataError, MemoryMapDocuments, TokenDocuments
from scaling.transformer.data.records.fields import Refusal
from scaling.transformer.data.records.prompted import prompted_record
from scaling.transformer.data.records.record import Record

CHECKED_AT_OPENING: Final = 1 << 16


@final
class StoredRecords:
    """Records as `scaling data tokenize --format` writes them."""

    def __init__(self, documents: MemoryMapDocuments) -> None:
        self._documents = documents

    def __len__(self) -> int:
        return len(self._documents)

    def read(self, index: int) -> Record:
        """Return a record."""
        return Record(self._documents.read(index).astype(np.int64), self._documents.weights(index))

    def sizes(self) -> NDArray[np.int64]:
        """Return the number of tokens of each record."""
        return np.asarray(self._documents.sizes(), np.int64)

    def fingerprint(self) -> str:
        """Return a digest of tokens, weights, and how they were made."""
        return self._documents.fingerprint()


@final
class PromptCompletionRecords:
    """Documents in the predecessor's memory maps, each the length of a prompt, the prompt and its completion.

    Up to 2^16 of them, evenly spread, are checked when they are opened, and each one when it is read. `every_token`:
    the prompt counts as well.

    Raises:
        DataError: A document is no such record.
    """

    def __init__(
        self, documents: TokenDocuments, *, eod_token_id: int, vocab_size: int, every_token: bool = False
    ) -> None:
        self._documents = documents
        self._eod_token_id = eod_token_id
        self._vocab_size = vocab_size
        self._every_token = every_token
        for index in range(0, len(documents), -(-len(documents) // CHECKED_AT_OPENING)):
            self.read(index)

    def __len__(self) -> int:
        return len(self._documents)

    def read(self, index: int) -> Record:
        """Return a record.

        Raises:
            DataError: The document does not begin with the length of its prompt, or cannot be learnt from.
        """
        try:
            return prompted_record(
                self._documents.read(index),
                eos_token_id=self._eod_token_id,
                vocab_size=self._vocab_size,
                every_token=self._every_token,
            )
        except Refusal as refusal:
            raise DataError(
                f"document {index} of {self._documents.prefix} cannot be used: {refusal}; mend the data set, or set "
                "data.finetuning_dataset_memory_map to false if it is none of the predecessor's"
            ) from refusal

    def sizes(self) -> NDArray[np.int64]:
        """Return the number of tokens of each record: one less for the length, one more for the end."""
        return np.asarray(self._documents.sizes(), np.int64)

    def fingerprint(self) -> str:
        """Return a digest of the documents, of the token that is put after them, and of which tokens count."""
        counts = "all" if self._every_token else "completions"
        return f"{self._documents.fingerprint()} prompts and completions, end {self._eod_token_id}, {counts} count"
