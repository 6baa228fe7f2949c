"""Sequences are cut from documents as a slow walk through all tokens would cut them."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from scaling.transformer.data import packing
from scaling.transformer.data.packing import Packing, Plan, PrefixSums, Span, walk

Token = tuple[int, int]  # document, place in it

lengths_of_documents = st.lists(st.sampled_from([0, 0, 2, 3, 4, 5, 8, 9, 13]), max_size=40)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make short lists of documents span several blocks."""
    monkeypatch.setattr(packing, "BLOCK", 4)


def plan(sizes: list[int], rules: Packing) -> Plan:
    array = np.array(sizes, np.int64)

    def lengths(start: int, stop: int) -> NDArray[np.int64]:
        assert 0 <= start < stop <= len(array)
        return array[start:stop]

    return rules.plan(lengths, len(sizes))


def sequences(sizes: list[int], rules: Packing) -> list[list[Token]]:
    made = plan(sizes, rules)
    return [
        [(document, place) for document, start, stop in made.spans(index) for place in range(start, stop)]
        for index in range(len(made))
    ]


def all_tokens(sizes: list[int]) -> list[Token]:
    return [(document, place) for document, size in enumerate(sizes) for place in range(size)]


@settings(max_examples=60)
@given(lengths_of_documents, st.integers(1, 7), st.booleans())
def test_a_stream_is_cut_every_s_tokens_with_one_token_shared(sizes: list[int], length: int, drop_last: bool) -> None:
    tokens = all_tokens(sizes)
    starts = range(0, max(len(tokens) - 1, 0), length)
    expected = [tokens[start : start + length + 1] for start in starts]
    if drop_last:
        expected = [sequence for sequence in expected if len(sequence) == length + 1]
    assert sequences(sizes, Packing(length, drop_last=drop_last)) == expected


@settings(max_examples=60)
@given(lengths_of_documents, st.integers(1, 7))
def test_every_token_but_the_first_of_each_document_is_a_target_once(sizes: list[int], length: int) -> None:
    targets: list[Token] = []
    for sequence in sequences(sizes, Packing(length, drop_last=False)):
        targets += [token for token in sequence[1:] if token[1] > 0]
    assert targets == [token for token in all_tokens(sizes) if token[1] > 0]


@settings(max_examples=60)
@given(lengths_of_documents, st.integers(1, 7))
def test_full_sequences_come_from_one_document_each_and_the_rest_is_dropped(sizes: list[int], length: int) -> None:
    expected = [
        [(document, place) for place in range(start, start + length + 1)]
        for document, size in enumerate(sizes)
        for start in range(0, size - length, length)
    ]
    assert sequences(sizes, Packing(length, only_full_sequences=True)) == expected


@settings(max_examples=120)
@given(lengths_of_documents, st.integers(1, 7), st.integers(1, 4))
def test_left_overs_make_one_sequence_for_every_n_full_ones(sizes: list[int], length: int, every: int) -> None:
    rules = Packing(length, only_full_sequences=True, allow_incomplete_sequences_every_n=every)
    assert sequences(sizes, rules) == slow_mixture(sizes, length, every)


def slow_mixture(sizes: list[int], length: int, every: int) -> list[list[Token]]:
    made: list[list[Token]] = []
    full = mixed = 0
    pending: list[Token] = []
    for document, size in enumerate(sizes):
        rest = [(document, place) for place in range(size)]
        if pending and rest:
            missing = length + 1 - len(pending)
            pending += rest[:missing]
            if len(pending) <= length:
                continue
            made.append(pending)
            mixed, pending, rest = mixed + 1, [], rest[missing - 1 :]
        while len(rest) > length:
            made.append(rest[: length + 1])
            full, rest = full + 1, rest[length:]
        if len(rest) >= 2 and full / every - mixed >= 1:
            pending = rest
    return made


def test_left_overs_are_used_as_soon_as_enough_full_sequences_were_made() -> None:
    rules = Packing(4, only_full_sequences=True, allow_incomplete_sequences_every_n=1)
    made = plan([7, 3, 9], rules)
    assert [made.spans(index) for index in range(len(made))] == [
        (Span(0, 0, 5),),
        (Span(0, 4, 7), Span(1, 0, 2)),
        (Span(2, 0, 5),),
        (Span(2, 4, 9),),
    ]


@settings(max_examples=60)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=30))
def test_prefix_sums_find_the_item_of_each_position(counts: list[int]) -> None:
    array = np.array(counts, np.int64)
    sums = PrefixSums(lambda start, stop: array[start:stop], len(counts))
    assert sums.total == sum(counts)
    assert [sums.before(item) for item in range(len(counts) + 1)] == [
        sum(counts[:item]) for item in range(len(counts) + 1)
    ]
    owners = [(item, place) for item, count in enumerate(counts) for place in range(count)]
    assert [sums.find(position) for position in range(sums.total)] == owners


def test_a_walk_passes_over_documents_that_are_left_out() -> None:
    sizes = np.array([3, 0, 0, 0, 0, 0, 0, 0, 0, 2], np.int64)
    assert walk(lambda start, stop: sizes[start:stop], 10, (0, 2), 3) == (Span(0, 2, 3), Span(9, 0, 2))


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("sizes", [[], [0, 0]])
def test_no_documents_make_no_sequences(sizes: list[int], drop_last: bool) -> None:
    assert len(plan(sizes, Packing(4, drop_last=drop_last))) == 0
    assert len(plan(sizes, Packing(4, only_full_sequences=True, allow_incomplete_sequences_every_n=1))) == 0


def test_a_plan_for_a_million_documents_holds_a_few_kilobytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "BLOCK", 512)
    sizes = np.full(1_000_000, 100, np.int64)
    tracemalloc.start()
    made = Packing(256).plan(lambda start, stop: sizes[start:stop], len(sizes))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 100_000
    assert made.spans(len(made) - 1)[-1] == Span(999_997, 0, 45)
