"""Entries of an index confirm each other: what is right is read, and no damaged number is."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from scaling.core.data import span_index
from scaling.core.data.span_index import SpanIndex
from scaling.core.errors import DataError

SIZES = st.lists(st.integers(0, 3), min_size=1, max_size=9)


def index_of(starts: NDArray[np.int64], sizes: NDArray[np.int64], total: int) -> SpanIndex:
    def read(first: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        assert 0 <= first < stop <= len(sizes)
        return starts[first:stop], sizes[first:stop]

    return SpanIndex(Path("data.idx"), count=len(sizes), total=total, read=read)


def arrays(given_sizes: list[int]) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    sizes = np.array(given_sizes, np.int64)
    return np.cumsum(sizes) - sizes, sizes, int(sizes.sum())


@given(SIZES, st.integers(1, 4))
def test_every_entry_of_an_index_without_damage_is_read(given_sizes: list[int], block: int) -> None:
    starts, sizes, total = arrays(given_sizes)
    index = index_of(starts, sizes, total)
    assert [index.span(entry) for entry in range(len(sizes))] == list(zip(starts, sizes, strict=True))
    with mock.patch.object(span_index, "BLOCK_SIZE", block):
        index.check()
    with mock.patch.object(span_index, "ENTRIES_CHECKED_AT_OPENING", 0):
        index.check_at_opening()


@given(SIZES, st.data(), st.sampled_from([-9, -1, 1, 9]), st.integers(1, 4))
def test_any_one_damaged_number_is_noticed_where_it_is(
    given_sizes: list[int], data: st.DataObject, change: int, block: int
) -> None:
    starts, sizes, total = arrays(given_sizes)
    entry = data.draw(st.integers(0, len(sizes) - 1))
    data.draw(st.sampled_from([starts, sizes]))[entry] += change
    index = index_of(starts, sizes, total)
    with pytest.raises(DataError, match=f"entry {entry} contradicts its neighbours"):
        index.span(entry)
    with mock.patch.object(span_index, "BLOCK_SIZE", block), pytest.raises(DataError):
        index.check()
    with pytest.raises(DataError):
        index.check_at_opening()


@pytest.mark.parametrize("more", [-1, 1])
def test_what_is_described_ends_where_the_entries_do(more: int) -> None:
    starts, sizes, total = arrays([2, 0, 3])
    index = index_of(starts, sizes, total + more)
    with pytest.raises(DataError):
        index.check()
    with pytest.raises(DataError):
        index.span(2)


def test_an_index_is_checked_once() -> None:
    starts, sizes, total = arrays([2, 0, 3])
    index = index_of(starts, sizes, total)
    index.check()
    sizes[0] = 9
    index.check()
