"""TextDataset: token documents as a finite, indexed collection of sequences of equal length."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Protocol, final

import numpy as np
from numpy.typing import NDArray

from scaling.core import BaseDataset, DataError, MicroBatch
from scaling.transformer.data.amount import too_little
from scaling.transformer.data.batch import TextCollator, TextSample
from scaling.transformer.data.packing import Packing
from scaling.transformer.data.split import Split


class Documents(Protocol):
    """Documents of token ids, each readable without the others: any token file of `scaling.core`."""

    def __len__(self) -> int:
        """Return the number of documents."""
        ...

    def read(self, index: int, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Return tokens `start` to `stop` (exclusive) of a document."""
        ...

    def sizes(self, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Return the number of tokens of documents `start` to `stop` (exclusive)."""
        ...

    def fingerprint(self) -> str:
        """Return a digest of the data's identity."""
        ...


@final
class TextDataset(BaseDataset[TextSample]):
    """Sequences cut from documents, each of s inputs and s targets, which are the inputs shifted by one token.

    The order of sequences is that of the documents; shuffling is the loader's task. Documents of fewer than two tokens
    are left out, since nothing in them can be predicted.
    """

    def __init__(
        self,
        documents: Documents,
        packing: Packing,
        *,
        collator: TextCollator,
        eod_token_id: int,
        name: str,
        split: Split | None = None,
    ) -> None:
        self._documents = documents
        self._eod_token_id = eod_token_id
        self._packing = packing
        self._collator = collator
        self.name = name
        self._split = split or Split()
        self._plan = packing.plan(self._lengths, len(documents))

    def _lengths(self, start: int, stop: int) -> NDArray[np.int64]:
        return self._split.lengths(self._documents.sizes(start, stop), start)

    def __len__(self) -> int:
        return len(self._plan)

    def __getitem__(self, index: int) -> TextSample:
        """Return a sequence.

        Raises:
            IndexError: There is no such sequence.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"sequence {index} of {len(self)} in {self.name}")
        spans = self._plan.spans(index)
        size = self._packing.sequence_length + 1
        tokens = np.full(size, self._eod_token_id, np.int64)
        place = 0
        for document, start, stop in spans:
            tokens[place : place + stop - start] = self._documents.read(document, start, stop)
            place += stop - start
        return TextSample.of_documents(tokens, spans, self.name, eod_token_id=self._eod_token_id)

    def collate(self, samples: Sequence[TextSample], positions: Sequence[int], valid: Sequence[bool]) -> MicroBatch:
        """Make one micro-batch of (TextInputs, TextTargets).

        Raises:
            DataError: A token lies outside the vocabulary.
        """
        return self._collator.collate(samples, positions, valid)

    def fingerprint(self) -> str:
        """Return a digest of the documents and of everything that decides which tokens a sequence number stands for."""
        rules = f"{self._packing} {self._split} eod {self._eod_token_id}"
        return hashlib.sha256(f"{self._documents.fingerprint()} {rules}".encode()).hexdigest()[:32]

    def require_sequences(self) -> None:
        """Refuse a data set that makes no sequence at all.

        Raises:
            DataError: There are too few tokens.
        """
        if len(self) == 0:
            length = self._packing.sequence_length
            raise DataError(too_little(self.name, len(self._documents), length, self._split))
