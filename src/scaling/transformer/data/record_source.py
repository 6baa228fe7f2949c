"""Records in files: those with weights beside their tokens, and the prompts and completions of the predecessor."""

from __future__ import annotations

from typing import final

import numpy as np
from numpy.typing import NDArray

from scaling.core import DataError, MemoryMapDocuments, TokenDocuments
from scaling.transformer.data.records.record import Record


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
    """Documents that are the length of a prompt, the prompt and its completion, in the predecessor's memory maps.

    The token that ends a text is not stored: each completion is followed by it, and it is learnt.
    """

    def __init__(self, documents: TokenDocuments, *, eod_token_id: int) -> None:
        self._documents = documents
        self._eod_token_id = eod_token_id

    def __len__(self) -> int:
        return len(self._documents)

    def read(self, index: int) -> Record:
        """Return a record.

        Raises:
            DataError: The document does not begin with the length of its prompt.
        """
        document = self._documents.read(index).astype(np.int64)
        prompt = int(document[0])
        if not 0 <= prompt < len(document):
            raise DataError(
                f"document {index} of {self._documents.prefix} says that its prompt has {prompt} tokens, but it has "
                f"{len(document) - 1} in all, so it is no prompt with a completion of the predecessor's; set "
                "data.finetuning_dataset_memory_map to false"
            )
        weights = np.ones(len(document), np.float32)
        weights[:prompt] = 0
        return Record(np.append(document[1:], self._eod_token_id), weights)

    def sizes(self) -> NDArray[np.int64]:
        """Return the number of tokens of each record: one less for the length, one more for the end."""
        return np.asarray(self._documents.sizes(), np.int64)

    def fingerprint(self) -> str:
        """Return a digest of the documents, and of the token that is put behind them."""
        return f"{self._documents.fingerprint()} prompts and completions, end {self._eod_token_id}"
