"""Masks and bounds of packed documents: what they let see, and that a micro-batch gets them once."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from scaling.core.nn.attention_masks import DocumentMasks, PerMicroBatch, Visible, band, document_bounds
from tests.reference import dense

LENGTHS = ([3, 1, 4], [8], [2, 6])
LIKE = torch.empty(3, 8, 1, 1)
CPU = torch.device("cpu")


def whole(visible: Visible, *, rows: int, length: int) -> Tensor:
    """Return what is visible as a mask [b, s, s]."""
    if visible.mask is not None:
        return visible.mask.expand(rows, 1, length, length)[:, 0]
    mask = torch.ones(length, length, dtype=torch.bool)
    return (mask.tril() if visible.causal else mask).expand(rows, length, length)


@settings(max_examples=60)
@given(data=st.data(), causal=st.booleans(), window=st.none() | st.integers(1, 10), packed=st.booleans())
def test_masks_let_see_what_the_definition_says(
    data: st.DataObject, causal: bool, window: int | None, packed: bool
) -> None:
    length, rows = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 3))
    numbers = st.lists(st.integers(0, 2), min_size=length, max_size=length).map(sorted)
    documents = torch.tensor([data.draw(numbers) for _ in range(rows)], dtype=torch.int32) if packed else None
    visible = DocumentMasks(causal=causal, window=window)(documents, torch.empty(rows, length, 1, 1))
    found = whole(visible, rows=rows, length=length)
    for row in range(rows):
        for query in range(length):
            keys = [
                key
                for key in range(length)
                if (key <= query or not causal)
                and (documents is None or documents[row, key] == documents[row, query])
                and (window is None or abs(query - key) < window)
            ]
            assert found[row, query].nonzero().flatten().tolist() == keys
            if causal and window is not None and documents is None:
                assert len(keys) == min(window, query + 1)  # itself included


@given(keys=st.integers(1, 9), data=st.data(), window=st.none() | st.integers(1, 10), causal=st.booleans())
def test_the_last_queries_have_the_last_rows_of_the_band(
    keys: int, data: st.DataObject, window: int | None, causal: bool
) -> None:
    queries = data.draw(st.integers(1, keys))
    square = band(keys, keys, causal=causal, window=window, device=CPU)
    assert torch.equal(band(queries, keys, causal=causal, window=window, device=CPU), square[:, :, keys - queries :])


def test_a_micro_batch_gets_its_mask_once() -> None:
    masks = DocumentMasks(causal=True)
    one, other = dense.lengths_to_documents(LENGTHS), dense.lengths_to_documents(LENGTHS[::-1])
    first = masks(one, LIKE).mask
    assert masks(one, LIKE).mask is first
    changed = masks(other, LIKE).mask
    assert changed is not None
    assert first is not None
    assert torch.equal(changed, first.flip(0))
    assert masks(None, LIKE) == Visible(None, True)
    again = masks(one, LIKE).mask
    assert again is not None
    assert torch.equal(again, first)


def test_rows_without_documents_share_one_mask_of_their_length() -> None:
    masks = DocumentMasks(causal=True, window=2)
    first = masks(None, LIKE).mask
    assert first is not None
    assert first.shape == (1, 1, 8, 8)
    assert masks(None, LIKE).mask is first
    shorter = masks(None, LIKE[:, :5]).mask
    assert shorter is not None
    assert torch.equal(shorter, first[..., :5, :5])
    assert masks(None, LIKE[:, :2]) == Visible(None, True)  # the window holds the whole row


def test_a_mask_is_not_kept_for_another_micro_batch_at_the_same_address() -> None:
    masks = DocumentMasks(causal=True)
    for seed in range(20):
        lengths = [[1 + seed % 7, 7 - seed % 7]]
        found = masks(dense.lengths_to_documents(lengths), LIKE[:1]).mask
        assert found is not None
        expected = DocumentMasks(causal=True)(dense.lengths_to_documents(lengths), LIKE[:1]).mask
        assert expected is not None
        assert torch.equal(found, expected)


def test_what_is_kept_of_documents_that_are_gone_is_not_taken_for_rows_without_any() -> None:
    seen = PerMicroBatch(lambda documents, like: documents is None)
    assert not seen(dense.lengths_to_documents(LENGTHS), LIKE)  # nobody holds these numbers any more
    assert seen(None, LIKE)
    assert not seen(dense.lengths_to_documents(LENGTHS), LIKE)


@pytest.mark.parametrize("causal", [True, False])
def test_rows_of_one_document_need_no_mask(causal: bool) -> None:
    ids = torch.tensor([[3] * 8, [0] * 8], dtype=torch.int32)
    assert DocumentMasks(causal=causal)(ids, LIKE[:2]) == Visible(None, causal)


@settings(max_examples=100)
@given(data=st.data(), rows=st.integers(1, 4), length=st.integers(1, 12))
def test_bounds_cut_the_flattened_batch_into_documents(data: st.DataObject, rows: int, length: int) -> None:
    lengths = []
    for _ in range(rows):
        cuts = sorted(data.draw(st.sets(st.integers(1, length - 1)) if length > 1 else st.just(set[int]())))
        lengths.append([stop - start for start, stop in zip([0, *cuts], [*cuts, length], strict=True)])
    like = torch.empty(rows, length, 1, 1)
    bounds = document_bounds(dense.lengths_to_documents(lengths), like)
    assert bounds.dtype == torch.int32
    assert bounds.shape == (rows * length + 1,)
    documents = [n for row in lengths for n in row]
    steps = bounds.diff().tolist()
    assert bounds[0] == 0
    assert steps[: len(documents)] == documents
    assert not any(steps[len(documents) :])  # filled up with documents of no length
    assert bounds[-1] == rows * length
    without = document_bounds(None, like)
    assert without.dtype == torch.int32
    assert without.tolist() == [row * length for row in range(rows + 1)]


def test_equal_numbers_in_neighbouring_rows_are_two_documents() -> None:
    bounds = document_bounds(torch.zeros(3, 4, dtype=torch.int32), torch.empty(3, 4, 1, 1)).tolist()
    assert bounds == [0, 4, 8, *[12] * 10]
