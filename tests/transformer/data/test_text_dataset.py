"""Token documents as sequences of equal length."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from scaling.core.data.memory_map import MemoryMapDataset
from scaling.core.data.memory_map_builder import MemoryMapDatasetBuilder
from scaling.core.errors import DataError
from scaling.transformer.data.batch import TextCollator
from scaling.transformer.data.packing import Packing, Span
from scaling.transformer.data.split import Part, Split
from scaling.transformer.data.text_dataset import TextDataset


class Lists:
    """Documents in memory."""

    def __init__(self, *documents: list[int]) -> None:
        self.documents = documents

    def __len__(self) -> int:
        return len(self.documents)

    def read(self, index: int, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        return np.array(self.documents[index][start:stop], np.uint16)

    def sizes(self, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        return np.array([len(document) for document in self.documents[start:stop]], np.int32)

    def fingerprint(self) -> str:
        return str(self.documents)


def dataset(*documents: list[int], length: int = 3, split: Split | None = None, **rules: Any) -> TextDataset:
    return TextDataset(
        Lists(*documents),
        Packing(length, **rules),
        collator=TextCollator(100),
        eod_token_id=0,
        name="lists",
        split=split,
    )


def test_a_sample_is_s_plus_one_tokens_with_their_documents() -> None:
    data = dataset([1, 2, 3, 0], [], [9], [4, 5, 0])
    assert len(data) == 2
    assert data[0].tokens.tolist() == [1, 2, 3, 0]
    assert data[0].spans == (Span(0, 0, 4),)
    assert data[1].tokens.tolist() == [0, 4, 5, 0]
    assert data[1].spans == (Span(0, 3, 4), Span(3, 0, 3))


def test_the_last_sequence_is_padded_where_it_is_kept() -> None:
    data = dataset([1, 2, 3, 4, 5], drop_last=False)
    assert [data[index].tokens.tolist() for index in range(len(data))] == [[1, 2, 3, 4], [4, 5, 0, 0]]
    assert data.collate([data[1]], [0], [True]).targets.loss_weights.tolist() == [[1, 0, 0]]


def test_an_index_that_does_not_exist_is_an_index_error() -> None:
    data = dataset([1, 2, 3, 0])
    for index in (-1, 1):
        with pytest.raises(IndexError, match="of 1 in lists"):
            data[index]


def test_training_and_validation_share_no_document() -> None:
    documents = [[1 + number % 90] * 4 for number in range(60)]
    parts = [dataset(*documents, split=Split(part, 0.3), drop_last=False) for part in (Part.TRAIN, Part.VALIDATION)]
    used = [{span.document for index in range(len(data)) for span in data[index].spans} for data in parts]
    assert used[0] | used[1] == set(range(60))
    assert not used[0] & used[1]


def test_too_little_text_is_refused_with_the_remedy() -> None:
    with pytest.raises(DataError, match=r"lists: 1 document makes no sequence of 3 \+ 1 tokens"):
        dataset([1, 2, 0]).require_sequences()
    with pytest.raises(DataError, match="in the validation part"):
        dataset([1, 2, 3, 0], split=Split(Part.VALIDATION, 1e-9)).require_sequences()


def test_the_fingerprint_tells_apart_whatever_changes_a_sample() -> None:
    documents = ([1, 2, 3, 0], [4, 5, 6, 0])
    variants = [
        dataset(*documents),
        dataset(*documents, length=2),
        dataset(*documents, only_full_sequences=True),
        dataset(*documents, split=Split(Part.TRAIN, 0.1)),
        dataset(*documents[::-1]),
    ]
    assert len({variant.fingerprint() for variant in variants}) == len(variants)
    assert dataset(*documents).fingerprint() == variants[0].fingerprint()


def test_a_data_set_over_a_memory_map_travels_to_a_worker_without_its_contents(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    with MemoryMapDatasetBuilder(tmp_path / "data", np.uint16) as builder:
        for _ in range(2000):
            builder.add(random.integers(1, 100, size=8))
    data = TextDataset(
        MemoryMapDataset(tmp_path / "data"), Packing(16), collator=TextCollator(100), eod_token_id=0, name="data"
    )
    sent = pickle.dumps(data)
    assert len(sent) < 5000
    received = pickle.loads(sent)
    assert len(received) == len(data) == (2000 * 8 - 1) // 16
    assert received[998].tokens.tolist() == data[998].tokens.tolist()
    assert received.fingerprint() == data.fingerprint()
