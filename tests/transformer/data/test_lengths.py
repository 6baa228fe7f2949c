"""Lengths of documents are summed up without holding them all."""

from __future__ import annotations

from unittest import mock

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from scaling.transformer.data import lengths
from scaling.transformer.data.lengths import LONGEST, lengths_of


@given(st.lists(st.integers(0, 3000), min_size=1, max_size=40), st.integers(1, 50))
def test_lengths_are_summed_up_as_if_they_were_all_there(sizes: list[int], block: int) -> None:
    given_sizes = np.array(sizes, np.int32)
    with mock.patch.multiple(lengths, BLOCK=block, LONGEST=4000):
        found = lengths_of(lambda start, stop: given_sizes[start:stop], len(sizes))
    assert (found.smallest, found.largest) == (min(sizes), max(sizes))
    assert found.mean == float(given_sizes.mean(dtype=np.float64))
    assert found.median == sorted(sizes)[(len(sizes) - 1) // 2]
    assert found.by_bits == tuple(
        sum(size.bit_length() == bits for size in sizes) for bits in range(max(sizes).bit_length() + 1)
    )


def test_beyond_what_is_counted_one_by_one_the_median_is_a_bound() -> None:
    sizes = np.array([5, LONGEST + 7, 10**12])
    found = lengths_of(lambda start, stop: sizes[start:stop], 3)
    assert (found.median, found.largest) == (LONGEST, 10**12)
    assert sum(found.by_bits) == 3
