"""Records in memory, and data sets made of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scaling.transformer.data.batch import TextCollator
from scaling.transformer.data.record_dataset import RecordDataset
from scaling.transformer.data.record_rows import RowRules
from scaling.transformer.data.records.record import Record
from scaling.transformer.data.split import Split


class RecordList:
    """Records in memory."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.records = records

    def __len__(self) -> int:
        return len(self.records)

    def read(self, index: int) -> Record:
        return self.records[index]

    def sizes(self) -> NDArray[np.int64]:
        return np.array([len(record.tokens) for record in self.records], np.int64)

    def fingerprint(self) -> str:
        return str([(record.tokens.tolist(), record.weights.tolist()) for record in self.records])


def record(tokens: Sequence[int], weights: Sequence[float]) -> Record:
    return Record(np.array(tokens, np.int64), np.array(weights, np.float32))


def random_records(count: int, *, longest: int, seed: int = 0, vocabulary: int = 50) -> list[Record]:
    """Return records of 2 tokens and more, of which a middle part counts and some are token 0."""
    stream = np.random.default_rng(seed)
    made = []
    for size in stream.integers(2, longest + 1, count).tolist():
        weights = np.zeros(size)
        weights[int(stream.integers(1, size)) :] = 1.0
        made.append(record(stream.integers(0, vocabulary, size).tolist(), weights.tolist()))
    return made


def dataset(records: Sequence[Record], length: int, *, split: Split | None = None, **rules: Any) -> RecordDataset:
    return RecordDataset(
        RecordList(records), RowRules(length, **rules), collator=TextCollator(50), name="records", split=split
    )
