"""Memory maps of records: a weight for each token, and how they were made."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from scaling.core.data.file_dataset import FileDataset
from scaling.core.data.formats import open_documents
from scaling.core.data.memory_map import MemoryMapDataset
from scaling.core.data.memory_map_builder import MemoryMapDatasetBuilder
from scaling.core.errors import DataError

MADE_BY = {"format": "messages", "train_on": "assistant"}
ZEROS_AND_ONES = [([1, 2, 3], [0.0, 1.0, 1.0]), ([4, 5], [0.0, 1.0])]
FRACTIONS = [*ZEROS_AND_ONES, ([6, 7], [0.25, 3.0])]

Records = list[tuple[list[int], list[float]]]


def build(prefix: Path, records: Records, made_by: dict[str, str] | None = None) -> Path:
    with MemoryMapDatasetBuilder(prefix, np.uint16, made_by=MADE_BY if made_by is None else made_by) as builder:
        for tokens, weights in records:
            builder.add(tokens, weights)
    return prefix


@pytest.mark.parametrize(("records", "dtype"), [(ZEROS_AND_ONES, "uint8"), (FRACTIONS, "float32")])
def test_weights_come_back_with_their_tokens(records: Records, dtype: str, tmp_path: Path) -> None:
    prefix = build(tmp_path / "data", records)
    for found in (MemoryMapDataset(prefix), FileDataset(prefix), pickle.loads(pickle.dumps(MemoryMapDataset(prefix)))):
        assert [(found[index].tolist(), found.weights(index).tolist()) for index in range(len(found))] == records
        assert found.made_by == MADE_BY
        found.verify()
    assert json.loads((tmp_path / "data.meta.json").read_text())["weights_dtype"] == dtype
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".bin", ".idx", ".json", ".weights"]


def test_documents_have_no_weights_and_files_as_before(tmp_path: Path) -> None:
    (tmp_path / "data.weights.building").write_bytes(b"of a build that was killed")
    with MemoryMapDatasetBuilder(tmp_path / "data") as builder:
        builder.add([1, 2])
        with pytest.raises(ValueError, match="documents have none"):
            builder.add([1, 2], [0, 1])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.bin", "data.idx", "data.meta.json"]
    found = MemoryMapDataset(tmp_path / "data")
    assert found.made_by is None
    with pytest.raises(ValueError, match="has no weights"):
        found.weights(0)
    meta = json.loads((tmp_path / "data.meta.json").read_text())
    assert meta["version"] == 1
    assert "made_by" not in meta


@pytest.mark.parametrize("weights", [[0.0], [0.0, -1.0], [0.0, float("nan")], None])
def test_weights_that_are_none_are_refused(weights: list[float] | None, tmp_path: Path) -> None:
    builder = MemoryMapDatasetBuilder(tmp_path / "data", made_by=MADE_BY)
    with pytest.raises((DataError, ValueError), match="weights"):
        builder.add([1, 2], weights)
    builder.discard()
    assert list(tmp_path.iterdir()) == []


def test_the_fingerprint_tells_weights_and_making_apart(tmp_path: Path) -> None:
    variants = [
        build(tmp_path / "a", ZEROS_AND_ONES),
        build(tmp_path / "b", [([1, 2, 3], [0.0, 1.0, 0.0]), ([4, 5], [0.0, 1.0])]),
        build(tmp_path / "c", ZEROS_AND_ONES, {"format": "alpaca"}),
    ]
    assert len({open_documents(prefix).fingerprint() for prefix in variants}) == 3


def test_a_damaged_weight_file_is_named(tmp_path: Path) -> None:
    prefix = build(tmp_path / "data", ZEROS_AND_ONES)
    path = tmp_path / "data.weights"
    before = MemoryMapDataset(prefix).fingerprint()
    path.write_bytes(b"\0" * 5)
    with pytest.raises(DataError, match=r"data\.weights is damaged .* its content does not match the digest"):
        MemoryMapDataset(prefix).verify()
    assert MemoryMapDataset(prefix).fingerprint() != before
    path.write_bytes(b"\0" * 4)
    with pytest.raises(DataError, match=r"data\.weights is damaged .* it has 4 bytes, and 5 elements of uint8 take 5"):
        MemoryMapDataset(prefix)
    path.unlink()
    with pytest.raises(DataError, match=r"data\.weights does not exist"):
        MemoryMapDataset(prefix)
