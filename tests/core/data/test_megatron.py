"""Data sets in Megatron's format: documents of every type, and damaged files."""

from __future__ import annotations

import pickle
import struct
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.core.data import megatron, span_index
from scaling.core.data.file_dataset import FileDataset
from scaling.core.data.formats import open_documents
from scaling.core.data.megatron import MegatronDataset
from scaling.core.data.memory_map import MemoryMapDataset
from scaling.core.data.memory_map_builder import MemoryMapDatasetBuilder
from scaling.core.errors import DataError, StorageError

CODES = {"uint8": 1, "int8": 2, "int16": 3, "int32": 4, "int64": 5, "uint16": 8}
DOCUMENTS = [[[5, 6, 7]], [[1]], [[3, 2, 2, 9, 99]]]
"""Documents of one sequence each, as nearly all Megatron data sets have."""


def write(prefix: Path, documents: Sequence[Sequence[Sequence[int]]] = DOCUMENTS, dtype: str = "uint16") -> Path:
    sequences = [sequence for document in documents for sequence in document]
    sizes = np.array([len(sequence) for sequence in sequences], dtype="<i4")
    pointers = np.concatenate([[0], np.cumsum(sizes, dtype="<i8")[:-1]]).astype("<i8") * np.dtype(dtype).itemsize
    borders = np.cumsum([0, *(len(document) for document in documents)], dtype="<i8")
    np.array([token for sequence in sequences for token in sequence], dtype=dtype).tofile(f"{prefix}.bin")
    header = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, CODES[dtype], len(sizes), len(borders))
    Path(f"{prefix}.idx").write_bytes(header + sizes.tobytes() + pointers.tobytes() + borders.tobytes())
    return prefix


@pytest.mark.parametrize("load_index_to_memory", [False, True])
@pytest.mark.parametrize("dtype", CODES)
def test_documents_of_every_type_are_read(dtype: str, load_index_to_memory: bool, tmp_path: Path) -> None:
    documents = MegatronDataset(write(tmp_path / "corpus", dtype=dtype), load_index_to_memory)
    assert documents.dtype == np.dtype(dtype)
    assert (len(documents), documents.token_count) == (3, 9)
    assert [document.tolist() for document in documents] == [document[0] for document in DOCUMENTS]
    assert documents.sizes().tolist() == [3, 1, 5]
    assert documents.read(-1, 1, 3).tolist() == [2, 2]
    documents.verify()
    documents.check_vocabulary(100)
    with pytest.raises(DataError, match="token 99"):
        documents.check_vocabulary(99)
    sent = pickle.loads(pickle.dumps(documents))
    assert sent.fingerprint() == documents.fingerprint()


documents_of_sequences = st.lists(
    st.lists(st.lists(st.integers(0, 100), max_size=4), max_size=4), min_size=1, max_size=8
).filter(
    lambda documents: any(token for document in documents for sequence in document for token in [sequence] if token)
)


@settings(deadline=None, derandomize=True, max_examples=50)
@given(documents=documents_of_sequences)
def test_sequences_of_a_document_are_joined_and_documents_may_be_empty(
    documents: list[list[list[int]]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    expected = [[token for sequence in document for token in sequence] for document in documents]
    dataset = MegatronDataset(write(tmp_path_factory.mktemp("megatron") / "corpus", documents, "int32"))
    assert [document.tolist() for document in dataset] == expected
    sizes = [len(document) for document in expected]
    assert dataset.sizes().tolist() == sizes
    for start in range(len(sizes) + 1):
        assert dataset.sizes(start, start + 2).tolist() == sizes[start : start + 2]
    dataset.verify()


@pytest.mark.parametrize("sequences", [1, 2])
def test_the_sizes_of_a_part_of_the_documents_take_the_memory_of_that_part(
    sequences: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = write(tmp_path / "corpus", [[[1]] * sequences] * 40_000)
    for module in (megatron, span_index):
        monkeypatch.setattr(module, "BLOCK_SIZE", 1000)
    documents = MegatronDataset(prefix)
    tracemalloc.start()
    try:
        assert sum(int(documents.sizes(start, start + 1000).sum()) for start in range(0, 40_000, 1000))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100_000  # all borders at once take 320 kB


def test_a_multimodal_index_is_named_as_such(tmp_path: Path) -> None:
    prefix = write(tmp_path / "corpus")
    with Path(f"{prefix}.idx").open("ab") as file:
        file.write(bytes(3))  # a mode per sequence
    with pytest.raises(DataError, match=r"corpus\.idx is the index of a multimodal data set"):
        MegatronDataset(prefix)


def test_borders_out_of_order_are_noticed_in_every_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(megatron, "BLOCK_SIZE", 4)
    for document in range(1, 10):
        prefix = write(tmp_path / f"corpus{document}", [[[1]]] * 10)
        change(HEADER + 12 * 10 + 8 * document, struct.pack("<q", document - 2))(prefix)
        with pytest.raises(DataError, match=f"borders of document {document - 1} are not in order"):
            MegatronDataset(prefix).sizes()


def change(offset: int, new: bytes) -> Callable[[Path], object]:
    def apply(prefix: Path) -> None:
        path = Path(f"{prefix}.idx")
        content = path.read_bytes()
        path.write_bytes(content[:offset] + new + content[offset + len(new) :])

    return apply


def cut(suffix: str, size: int) -> Callable[[Path], object]:
    def apply(prefix: Path) -> None:
        path = Path(f"{prefix}{suffix}")
        path.write_bytes(path.read_bytes()[:size])

    return apply


HEADER = 34
DAMAGE: dict[str, Callable[[Path], object]] = {
    "magic": change(0, b"TNTIDX\x00\x00\x00"),
    "version": change(9, struct.pack("<Q", 2)),
    "unknown type": change(17, b"\x09"),
    "type of floating point": change(17, b"\x06"),
    "larger type": change(17, b"\x04"),
    "smaller type": change(17, b"\x01"),
    "no sequences": change(18, struct.pack("<Q", 0)),
    "too many sequences": change(18, struct.pack("<Q", 4)),
    "2^62 sequences": change(18, struct.pack("<Q", 2**62)),
    "no documents": change(26, struct.pack("<Q", 1)),
    "too many documents": change(26, struct.pack("<Q", 5)),
    "negative size": change(HEADER, struct.pack("<i", -3)),
    "other size": change(HEADER + 4, struct.pack("<i", 2)),
    "last size": change(HEADER + 8, struct.pack("<i", 6)),
    "negative pointer": change(HEADER + 12, struct.pack("<q", -2)),
    "pointer into another document": change(HEADER + 12 + 8, struct.pack("<q", 4)),
    "pointer within a token": change(HEADER + 12 + 8, struct.pack("<q", 5)),
    "pointer beyond the end": change(HEADER + 12 + 16, struct.pack("<q", 2**61)),
    "first border": change(HEADER + 36, struct.pack("<q", 1)),
    "last border": change(HEADER + 36 + 24, struct.pack("<q", 4)),
    "index truncated": cut(".idx", 80),
    "header truncated": cut(".idx", 20),
    "index empty": cut(".idx", 0),
    "tokens truncated": cut(".bin", 16),
    "tokens truncated within a token": cut(".bin", 17),
    "tokens empty": cut(".bin", 0),
    "index missing": lambda prefix: Path(f"{prefix}.idx").unlink(),
    "tokens missing": lambda prefix: Path(f"{prefix}.bin").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_damaged_and_foreign_files_are_refused_at_opening(damage: Callable[[Path], object], tmp_path: Path) -> None:
    prefix = write(tmp_path / "corpus")
    damage(prefix)
    with pytest.raises(DataError, match=r"corpus\.(bin|idx) "):
        MegatronDataset(prefix)


def test_borders_out_of_order_are_noticed_when_they_are_used(tmp_path: Path) -> None:
    prefix = write(tmp_path / "corpus", [[[1], [2]], [[3]], [[4]]])
    change(HEADER + 4 * 12 + 8, struct.pack("<q", 4))(prefix)
    documents = MegatronDataset(prefix)
    for use in (documents.sizes, documents.verify, lambda: documents[1]):
        with pytest.raises(DataError, match="borders of document 1"):
            use()


def test_the_format_is_recognised_by_its_files(tmp_path: Path) -> None:
    with MemoryMapDatasetBuilder(tmp_path / "ours") as builder:
        builder.add([1])
    assert isinstance(open_documents(tmp_path / "ours"), MemoryMapDataset)
    assert isinstance(open_documents(str(tmp_path / "ours"), use_mmap=False), FileDataset)
    assert isinstance(open_documents(write(tmp_path / "theirs")), MegatronDataset)
    with pytest.raises(DataError, match=r"none\.meta\.json does not exist"):
        open_documents(tmp_path / "none")
    with pytest.raises(StorageError, match="File name too long"):
        open_documents(tmp_path / ("x" * 300))


@pytest.mark.parametrize("documents", [1, 9])
def test_a_memory_map_without_its_meta_file_is_not_taken_for_a_megatron_data_set(
    documents: int, tmp_path: Path
) -> None:
    """Its index may be shorter or longer than a header of Megatron's."""
    prefix = tmp_path / "ours"
    with MemoryMapDatasetBuilder(prefix) as builder:
        for _ in range(documents):
            builder.add([1])
    Path(f"{prefix}.meta.json").unlink()
    with pytest.raises(DataError, match=r"ours\.meta\.json does not exist.*copy it .*tokenize") as caught:
        open_documents(prefix)
    assert "legacy_dataset" not in str(caught.value)
