"""An even part of many texts."""

from __future__ import annotations

import gzip
import sys
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling.core.errors import DataError
from scaling.transformer.data.readers import text_size
from scaling.transformer.data.sampling import sample_texts, thin


@given(st.lists(st.integers(0, 50)), st.integers(0, 2000))
def test_the_part_stays_within_the_budget_and_keeps_the_order(lengths: list[int], budget: int) -> None:
    texts = [str(number % 10) * length for number, length in enumerate(lengths)]
    kept = list(thin(texts, total=sum(lengths), budget=budget))
    assert sum(map(len, kept)) <= budget
    rest = iter(texts)
    assert all(text in rest for text in kept)
    if budget >= sum(lengths):
        assert kept == texts


def test_the_part_is_spread_over_all_texts() -> None:
    kept = list(thin((f"{number:04d}" for number in range(1000)), total=4000, budget=400))
    assert len(kept) == 100
    assert max(int(later) - int(earlier) for earlier, later in pairwise(kept)) <= 11


def test_documents_of_files_are_sampled_and_a_bad_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(f'{{"text": "document {number}"}}\n' for number in range(100)) + "bad\n")
    with pytest.raises(DataError, match="line 101"):
        list(sample_texts([path], field="text", budget=300))
    kept = list(sample_texts([path], field="text", budget=300, max_bad=1))
    assert 10 <= len(kept) <= 25


def test_of_compressed_files_too_the_part_is_spread_over_all_documents(tmp_path: Path) -> None:
    lines = "".join(f'{{"text": "document {number} {"again " * 50}"}}\n' for number in range(500))
    path = tmp_path / "data.jsonl.gz"
    path.write_bytes(gzip.compress(lines.encode()))
    assert path.stat().st_size < len(lines) // 10
    numbers = [int(text.split()[1]) for text in sample_texts([path], field="text", budget=len(lines) // 20)]
    assert numbers[0] < 50
    assert numbers[-1] > 450
    assert max(later - earlier for earlier, later in pairwise(numbers)) < 50


def test_the_text_in_a_parquet_file_is_that_of_its_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [{"id": 5, "text": 700}, {"id": 6, "text": 800}]
    columns = [
        [SimpleNamespace(path_in_schema=name, total_uncompressed_size=size) for name, size in group.items()]
        for group in sizes
    ]
    groups = [SimpleNamespace(num_columns=2, column=group.__getitem__) for group in columns]
    metadata = SimpleNamespace(num_row_groups=2, row_group=groups.__getitem__)
    parquet = SimpleNamespace(ParquetFile=lambda path: nullcontext(SimpleNamespace(metadata=metadata)))
    monkeypatch.setitem(sys.modules, "pyarrow", SimpleNamespace(parquet=parquet))
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", parquet)
    (tmp_path / "a.parquet").write_bytes(b"short")
    assert text_size(tmp_path / "a.parquet", field="text") == 1500


@pytest.mark.parametrize("name", ["a.txt.gz", "a.jsonl.zst", "a.parquet", "a.txt"])
def test_what_cannot_be_read_counts_with_the_size_of_its_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"garbage")
    assert text_size(tmp_path / name, field="text") == 7
