"""Memory maps: documents come back, fingerprints cover the content, and damage is noticed."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.core.data import documents as documents_module
from scaling.core.data import span_index
from scaling.core.data.documents import TokenDocuments
from scaling.core.data.file_dataset import FileDataset
from scaling.core.data.memory_map import MemoryMapDataset
from scaling.core.data.memory_map_builder import MemoryMapDatasetBuilder
from scaling.core.errors import DataError

DOCUMENTS = [[5, 6, 7], [1], [300, 2, 2, 9, 40000]]

READERS: list[Callable[[Path], TokenDocuments]] = [
    MemoryMapDataset,
    FileDataset,
    lambda prefix: MemoryMapDataset(prefix, load_index_to_memory=True),
    lambda prefix: FileDataset(prefix, load_index_to_memory=True),
]
READER_NAMES = ["mapped", "read", "mapped, index in memory", "read, index in memory"]


def build(prefix: Path, documents: Sequence[Sequence[int]] = DOCUMENTS, **options: Any) -> Path:
    with MemoryMapDatasetBuilder(prefix, **options) as builder:
        for document in documents:
            builder.add(document)
    return prefix


def build_as_the_predecessor_did(prefix: Path, documents: Sequence[Sequence[int]] = DOCUMENTS) -> Path:
    """Three files without counts and digests."""
    sizes = [len(document) for document in documents]
    starts = np.cumsum([0, *sizes])[:-1]
    np.concatenate([np.array(document, dtype=np.int32) for document in documents]).tofile(f"{prefix}.bin")
    np.stack([starts, sizes], axis=1).astype(np.int64).tofile(f"{prefix}.idx")
    meta = {"dtype": "int32", "index_dtype": "int64", "document_count": len(documents)}
    Path(f"{prefix}.meta.json").write_text(json.dumps(meta))
    return prefix


@pytest.fixture(params=[build, build_as_the_predecessor_did], ids=["ours", "predecessor's"])
def prefix(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    made: Path = request.param(tmp_path / "corpus.v1")
    return made


@pytest.mark.parametrize("reader", READERS, ids=READER_NAMES)
def test_documents_come_back_as_they_were_added(reader: Callable[[Path], TokenDocuments], prefix: Path) -> None:
    documents = reader(prefix)
    assert len(documents) == documents.document_count == 3
    assert documents.token_count == 9
    assert [document.tolist() for document in documents] == DOCUMENTS
    assert documents[-1].tolist() == DOCUMENTS[-1]
    assert documents.sizes().tolist() == [3, 1, 5]
    assert documents.sizes(1, 2).tolist() == [1]
    assert documents.sizes(2).tolist() == [5]
    assert documents.sizes(3).tolist() == documents.sizes(2, 1).tolist() == []
    assert [documents.size(index) for index in (0, 1, -1)] == [3, 1, 5]
    assert documents.read(2, 1, 3).tolist() == [2, 2]
    assert documents.read(2, 3).tolist() == [9, 40000]
    assert documents.read(2, 4, 2).tolist() == documents.read(1, 5).tolist() == []
    documents.verify()


@pytest.mark.parametrize("reader", READERS, ids=READER_NAMES)
def test_documents_that_do_not_exist_are_an_index_error(reader: Callable[[Path], TokenDocuments], prefix: Path) -> None:
    documents = reader(prefix)
    for index in (3, -4):
        with pytest.raises(IndexError, match="holds 3"):
            documents[index]


@pytest.mark.parametrize("reader", READERS, ids=READER_NAMES)
def test_tokens_cannot_be_overwritten(reader: Callable[[Path], TokenDocuments], prefix: Path) -> None:
    with pytest.raises(ValueError, match="read-only"):
        reader(prefix)[0][0] = 1


@pytest.mark.parametrize("reader", [MemoryMapDataset, FileDataset])
def test_a_data_set_travels_to_another_process_by_name(reader: Callable[[Path], TokenDocuments], prefix: Path) -> None:
    documents = reader(prefix)
    sent = pickle.dumps(documents)
    assert len(sent) < 1000
    assert pickle.loads(sent)[2].tolist() == DOCUMENTS[2]
    assert pickle.loads(sent).fingerprint() == documents.fingerprint()


def test_the_fingerprint_is_that_of_the_content(tmp_path: Path) -> None:
    def changed(document: int, token: int) -> list[list[int]]:
        documents = copy.deepcopy(DOCUMENTS)
        documents[document][0] = token
        return documents

    variants = [DOCUMENTS, changed(1, 2), changed(2, 301), [[5, 6], [7, 1], DOCUMENTS[2]]]
    for kind, make in enumerate((build, build_as_the_predecessor_did)):
        prefixes = [make(tmp_path / f"{kind}{number}", documents) for number, documents in enumerate(variants)]
        fingerprints = [MemoryMapDataset(prefix).fingerprint() for prefix in prefixes]
        assert len(set(fingerprints)) == len(variants)
        assert fingerprints == [FileDataset(prefix).fingerprint() for prefix in prefixes]
        assert MemoryMapDataset(make(tmp_path / f"{kind}again")).fingerprint() == fingerprints[0]


@pytest.mark.usefixtures("large_index")
@pytest.mark.parametrize("suffix", [".bin", ".idx"])
def test_the_fingerprint_is_of_what_the_files_hold_now(suffix: str, tmp_path: Path) -> None:
    """Not only of the digests that were recorded when they were written."""
    prefix = build(tmp_path / "corpus", [[1, 2]] * 11)
    before = MemoryMapDataset(prefix).fingerprint()
    if suffix == ".bin":
        rewrite(Path(f"{prefix}.bin"), put(11, 7), "<i4")
    else:  # a border between two documents
        rewrite(Path(f"{prefix}.idx"), lambda array: array.__setitem__(slice(11, 14), [3, 13, 1]))
    after = MemoryMapDataset(prefix).fingerprint()
    assert after != before
    assert after == FileDataset(prefix).fingerprint()


def test_the_fingerprint_of_many_tokens_is_of_spots_from_the_first_to_the_last(tmp_path: Path) -> None:
    count = 1 << 21
    prefix = build(tmp_path / "corpus", [[0] * count], dtype=np.uint16)
    before = MemoryMapDataset(prefix).fingerprint()
    for place, noticed in ((0, True), (1 << 20, False), (count - 1, True)):
        rewrite(Path(f"{prefix}.bin"), put(place, 1), "<u2")
        for reader in (MemoryMapDataset, FileDataset):
            assert (reader(prefix).fingerprint() != before) == noticed, place
        rewrite(Path(f"{prefix}.bin"), put(place, 0), "<u2")


@pytest.mark.parametrize("reader", [MemoryMapDataset, FileDataset])
def test_tokens_outside_the_vocabulary_are_noticed_at_opening(
    reader: Callable[[Path], TokenDocuments], prefix: Path
) -> None:
    documents = reader(prefix)
    documents.check_vocabulary(40001)
    with pytest.raises(DataError, match=r"token 40000, but the vocabulary is 0 to 39999"):
        documents.check_vocabulary(40000)


def test_negative_tokens_are_noticed(tmp_path: Path) -> None:
    documents = MemoryMapDataset(build_as_the_predecessor_did(tmp_path / "corpus", [[1, -5], [3]]))
    with pytest.raises(DataError, match="token -5"):
        documents.check_vocabulary(100)
    with pytest.raises(DataError, match="token -5"):
        documents.verify()


def rewrite(path: Path, change: Callable[[np.ndarray[Any, Any]], None], dtype: str = "<i8") -> None:
    array = np.fromfile(path, dtype=dtype)
    change(array)
    array.tofile(path)


def edit_meta(prefix: Path, **values: object) -> None:
    path = Path(f"{prefix}.meta.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def put(place: int, value: int) -> Callable[[np.ndarray[Any, Any]], None]:
    return lambda array: array.__setitem__(place, value)


def truncate(prefix: Path, suffix: str, size: int) -> None:
    path = Path(f"{prefix}{suffix}")
    path.write_bytes(path.read_bytes()[:size])


DAMAGE: dict[str, Callable[[Path], object]] = {
    "negative size": lambda prefix: rewrite(Path(f"{prefix}.idx"), put(3, -1)),
    "size beyond the end": lambda prefix: rewrite(Path(f"{prefix}.idx"), put(5, 6)),
    "huge size": lambda prefix: rewrite(Path(f"{prefix}.idx"), put(5, 2**62)),
    "start in another document": lambda prefix: rewrite(Path(f"{prefix}.idx"), put(2, 2)),
    "negative start": lambda prefix: rewrite(Path(f"{prefix}.idx"), put(0, -1)),
    "starts out of order": lambda prefix: rewrite(Path(f"{prefix}.idx"), put(4, 0)),
    "index truncated by an entry": lambda prefix: truncate(prefix, ".idx", 32),
    "index truncated within an entry": lambda prefix: truncate(prefix, ".idx", 41),
    "index empty": lambda prefix: truncate(prefix, ".idx", 0),
    "index missing": lambda prefix: Path(f"{prefix}.idx").unlink(),
    "tokens truncated": lambda prefix: truncate(prefix, ".bin", 32),
    "tokens truncated within a token": lambda prefix: truncate(prefix, ".bin", 35),
    "tokens empty": lambda prefix: truncate(prefix, ".bin", 0),
    "tokens missing": lambda prefix: Path(f"{prefix}.bin").unlink(),
    "meta missing": lambda prefix: Path(f"{prefix}.meta.json").unlink(),
    "meta empty": lambda prefix: truncate(prefix, ".meta.json", 0),
    "meta truncated": lambda prefix: truncate(prefix, ".meta.json", 30),
    "meta not UTF-8": lambda prefix: Path(f"{prefix}.meta.json").write_bytes(b"\xff\xfe{}"),
    "meta not an object": lambda prefix: Path(f"{prefix}.meta.json").write_text("[1]"),
    "meta nested without end": lambda prefix: Path(f"{prefix}.meta.json").write_text("[" * 100_000),
    "meta of something else": lambda prefix: Path(f"{prefix}.meta.json").write_text('{"name": "x"}'),
    "count of a million": lambda prefix: edit_meta(prefix, document_count=10**6),
    "count of 2^62": lambda prefix: edit_meta(prefix, document_count=2**62),
    "count of nothing": lambda prefix: edit_meta(prefix, document_count=0),
    "negative count": lambda prefix: edit_meta(prefix, document_count=-3),
    "count that is no number": lambda prefix: edit_meta(prefix, document_count=True),
    "type too large": lambda prefix: edit_meta(prefix, dtype="int64"),
    "type too small": lambda prefix: edit_meta(prefix, dtype="uint16"),
    "index type too small": lambda prefix: edit_meta(prefix, index_dtype="int32"),
    "type that is none": lambda prefix: edit_meta(prefix, dtype="int33"),
    "type of floating point": lambda prefix: edit_meta(prefix, dtype="float32"),
    "type of a shape without end": lambda prefix: edit_meta(prefix, dtype=f"{'9' * 50}int32"),
    "type of Python objects": lambda prefix: edit_meta(prefix, dtype="O"),
    "type that is no text": lambda prefix: edit_meta(prefix, index_dtype=["int64"]),
}


@pytest.mark.parametrize("reader", [MemoryMapDataset, FileDataset])
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_damaged_and_foreign_files_are_refused_at_opening(
    damage: Callable[[Path], object], reader: Callable[[Path], TokenDocuments], prefix: Path
) -> None:
    damage(prefix)
    with pytest.raises(DataError, match=r"corpus\.v1\.(bin|idx|meta\.json) "):
        reader(prefix)


OUR_DAMAGE: dict[str, Callable[[Path], object]] = {
    "borders moved consistently": lambda prefix: rewrite(
        Path(f"{prefix}.idx"), lambda array: array.__setitem__(slice(1, 4), [2, 2, 2])
    ),
    "signedness": lambda prefix: edit_meta(prefix, dtype="uint32"),
    "largest token": lambda prefix: edit_meta(prefix, max_token=1),
    "version": lambda prefix: edit_meta(prefix, version=2),
    "format": lambda prefix: edit_meta(prefix, format="another"),
}


@pytest.mark.parametrize("damage", OUR_DAMAGE.values(), ids=OUR_DAMAGE.keys())
def test_digests_notice_changes_that_fit_together(damage: Callable[[Path], object], tmp_path: Path) -> None:
    prefix = build(tmp_path / "corpus")
    damage(prefix)
    with pytest.raises(DataError):
        MemoryMapDataset(prefix)


@settings(deadline=None, derandomize=True, max_examples=30)
@given(data=st.data())
def test_verify_notices_every_flipped_bit(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    prefix = build(tmp_path_factory.mktemp("flip") / "corpus")
    path = Path(f"{prefix}{data.draw(st.sampled_from(['.bin', '.idx', '.meta.json']))}")
    content = bytearray(path.read_bytes())
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"corpus\.(bin|idx|meta\.json) "):
        MemoryMapDataset(prefix).verify()


@pytest.fixture
def large_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """Treat small files as if they were too large to be read as a whole, and read them in small blocks."""
    monkeypatch.setattr(span_index, "ENTRIES_CHECKED_AT_OPENING", 0)
    monkeypatch.setattr("scaling.core.data.memory_map.ENTRIES_CHECKED_AT_OPENING", 0)
    monkeypatch.setattr(documents_module, "SPOT_CHECKS", 2)
    for module in (documents_module, span_index):
        monkeypatch.setattr(module, "BLOCK_SIZE", 4)


@pytest.mark.usefixtures("large_index")
@pytest.mark.parametrize("reader", READERS, ids=READER_NAMES)
def test_damage_in_a_large_index_is_noticed_when_it_is_used(
    reader: Callable[[Path], TokenDocuments], tmp_path: Path
) -> None:
    prefix = build(tmp_path / "corpus", [[number] * (number + 1) for number in range(11)])
    assert reader(prefix).sizes().tolist() == list(range(1, 12))
    rewrite(Path(f"{prefix}.idx"), put(2 * 6 + 1, 8))
    documents = reader(prefix)
    assert documents[3].tolist() == [3] * 4
    for neighbour in (6, 7):
        with pytest.raises(DataError, match=rf"entry {neighbour} contradicts"):
            documents[neighbour]
    for check in (documents.sizes, documents.verify):
        with pytest.raises(DataError, match=r"entry [67] contradicts"):
            check()


@pytest.mark.usefixtures("large_index")
def test_the_ends_of_a_large_index_are_checked_at_opening(tmp_path: Path) -> None:
    prefix = build(tmp_path / "corpus", [[1, 2]] * 11)
    rewrite(Path(f"{prefix}.idx"), put(-1, 3))
    with pytest.raises(DataError, match="entry 10"):
        MemoryMapDataset(prefix)


def test_opening_takes_a_fixed_number_of_reads(tmp_path: Path) -> None:
    """An index of 30 million documents in a sparse file: only the spots that are looked at hold entries."""
    count = 30_000_000
    prefix = tmp_path / "corpus"
    with open(f"{prefix}.idx", "wb") as index, open(f"{prefix}.bin", "wb") as tokens:
        for entry in documents_module.spread(count):
            first, stop = max(entry - 1, 0), min(entry + 2, count)
            index.seek(16 * first)
            index.write(np.array([[number, 1] for number in range(first, stop)], dtype=np.int64).tobytes())
        tokens.truncate(2 * count)
    meta = {"dtype": "uint16", "index_dtype": "int64", "document_count": count}
    Path(f"{prefix}.meta.json").write_text(json.dumps(meta))
    documents = MemoryMapDataset(prefix)
    assert len(documents) == count
    documents.check_vocabulary(10)
    assert documents.fingerprint() == FileDataset(prefix).fingerprint()


def test_a_file_that_becomes_shorter_while_it_is_opened_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "corpus.bin"
    path.write_bytes(bytes(8))
    monkeypatch.setattr(documents_module, "file_size", lambda path: 16)
    with pytest.raises(DataError, match=r"corpus\.bin .* became shorter"):
        documents_module.ArrayElements.mapped(path, np.dtype("<i4"))
