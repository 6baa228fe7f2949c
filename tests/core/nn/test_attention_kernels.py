"""Attention kernels of one signature against attention query by query, packed rows against their documents alone."""

from __future__ import annotations

import sys
from types import ModuleType
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from scaling.core.nn.attention_kernels import (
    DocumentMasks,
    Documents,
    cached_documents,
    document_bounds,
    flash_attention_available,
    scaled_dot_product,
    spelled_out,
)
from tests.reference import dense
from tests.reference.compare import backward, close, gradient_of
from tests.reference.worlds import random

KERNELS = pytest.mark.parametrize("kernel", [scaled_dot_product, spelled_out])
CAUSAL = pytest.mark.parametrize("causal", [True, False])
LENGTHS = ([3, 1, 4], [8], [2, 6])


def projections(*, heads: int = 4, kv_heads: int = 4, seed: int = 1) -> list[Tensor]:
    shapes = [(3, 8, heads, 6), (3, 8, kv_heads, 6), (3, 8, kv_heads, 6)]
    return [random(*shape, seed=seed + n).requires_grad_() for n, shape in enumerate(shapes)]


@KERNELS
@CAUSAL
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("packed", [True, False])
def test_kernels_attend_as_the_definition_says(kernel: object, causal: bool, kv_heads: int, packed: bool) -> None:
    assert callable(kernel)
    q, k, v = projections(kv_heads=kv_heads)
    documents = dense.lengths_to_documents(LENGTHS) if packed else None
    out = kernel(q, k, v, DocumentMasks(causal=causal)(documents), scale=0.37)
    copies = [t.detach().clone().requires_grad_() for t in (q, k, v)]
    wide = [copies[0], *(t.repeat_interleave(4 // kv_heads, dim=2) for t in copies[1:])]
    expected = dense.attend(*wide, scale=0.37, causal=causal, documents=documents)
    close(out, expected)
    weights = random(*expected.shape, seed=9)
    backward(out, weights)
    backward(expected, weights)
    for found, reference in zip((q, k, v), copies, strict=True):
        close(gradient_of(found), gradient_of(reference))


@KERNELS
@CAUSAL
def test_a_packed_row_is_its_documents_one_by_one(kernel: object, causal: bool) -> None:
    assert callable(kernel)
    q, k, v = (t.detach() for t in projections(kv_heads=2))
    masks = DocumentMasks(causal=causal)
    packed = kernel(q, k, v, masks(dense.lengths_to_documents(LENGTHS)), scale=0.5)
    for row, lengths in enumerate(LENGTHS):
        start = 0
        for length in lengths:
            part = (slice(row, row + 1), slice(start, start + length))
            close(packed[part], kernel(q[part], k[part], v[part], masks(None), scale=0.5))
            start += length


def test_dropped_probabilities_are_left_out_and_the_rest_scaled() -> None:
    q, k, v = (t.detach() for t in projections())
    keep = torch.rand(3, 4, 8, 8, generator=torch.Generator().manual_seed(0)) > 0.25
    documents = dense.lengths_to_documents(LENGTHS)
    out = spelled_out(q, k, v, DocumentMasks(causal=True)(documents), scale=0.5, keep=keep, probability=0.25)
    close(out, dense.attend(q, k, v, scale=0.5, causal=True, documents=documents, keep=keep.double() / 0.75))


def test_attention_is_nothing_where_all_probabilities_are_dropped() -> None:
    q, k, v = projections()
    keep = torch.zeros(3, 4, 8, 8, dtype=torch.bool)
    out = spelled_out(q, k, v, DocumentMasks(causal=True)(None), scale=0.5, keep=keep, probability=1.0)
    backward(out, torch.ones_like(out))
    for tensor in (out, *map(gradient_of, (q, k, v))):
        assert not tensor.any()


@KERNELS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_on_a_cpu_is_float32_rounded_once(kernel: object, dtype: torch.dtype) -> None:
    assert callable(kernel)
    halves = [t.detach().to(dtype) for t in projections()]
    out = kernel(*halves, Documents(None, True), scale=0.5)
    assert out.dtype == dtype
    assert torch.equal(out, kernel(*(t.float() for t in halves), Documents(None, True), scale=0.5).to(dtype))


def test_float32_is_not_widened_and_float64_not_narrowed() -> None:
    q, k, v = (t.detach() for t in projections())
    for dtype in (torch.float32, torch.float64):
        for kernel in (scaled_dot_product, spelled_out):
            assert kernel(q.to(dtype), k.to(dtype), v.to(dtype), Documents(None, True), scale=1.0).dtype == dtype


def test_a_micro_batch_gets_its_mask_once() -> None:
    masks = DocumentMasks(causal=True)
    one, other = dense.lengths_to_documents(LENGTHS), dense.lengths_to_documents(LENGTHS[::-1])
    first = masks(one)
    assert masks(one) is first
    changed = masks(other)
    assert changed.mask is not None
    assert first.mask is not None
    assert torch.equal(changed.mask, first.mask.flip(0))
    assert masks(None) == Documents(None, True)
    again = masks(one)
    assert again.mask is not None
    assert torch.equal(again.mask, first.mask)


def test_a_mask_is_not_kept_for_another_micro_batch_at_the_same_address() -> None:
    masks = DocumentMasks(causal=True)
    for seed in range(20):
        lengths = [[1 + seed % 7, 7 - seed % 7]]
        found = masks(dense.lengths_to_documents(lengths)).mask
        assert found is not None
        expected = DocumentMasks(causal=True)(dense.lengths_to_documents(lengths)).mask
        assert expected is not None
        assert torch.equal(found, expected)


@CAUSAL
def test_rows_of_one_document_need_no_mask(causal: bool) -> None:
    ids = torch.tensor([[3] * 8, [0] * 8], dtype=torch.int32)
    assert DocumentMasks(causal=causal)(ids) == Documents(None, causal)


@settings(max_examples=100)
@given(data=st.data(), rows=st.integers(1, 4), length=st.integers(1, 12))
def test_bounds_cut_the_flattened_batch_into_documents(data: st.DataObject, rows: int, length: int) -> None:
    lengths = []
    for _ in range(rows):
        cuts = sorted(data.draw(st.sets(st.integers(1, length - 1)) if length > 1 else st.just(set[int]())))
        lengths.append([stop - start for start, stop in zip([0, *cuts], [*cuts, length], strict=True)])
    bounds = document_bounds(dense.lengths_to_documents(lengths))
    assert bounds.dtype == torch.int32
    assert bounds.shape == (rows * length + 1,)
    documents = [n for row in lengths for n in row]
    steps = bounds.diff().tolist()
    assert bounds[0] == 0
    assert steps[: len(documents)] == documents
    assert not any(steps[len(documents) :])  # filled up with documents of no length
    assert bounds[-1] == rows * length


def test_equal_numbers_in_neighbouring_rows_are_two_documents() -> None:
    bounds = document_bounds(torch.zeros(3, 4, dtype=torch.int32)).tolist()
    assert bounds == [0, 4, 8, *[12] * 10]


def test_flash_attention_is_for_half_precision_on_gpus() -> None:
    for package in (None, ModuleType("flash_attn")):
        with mock.patch.dict(sys.modules, {"flash_attn": package}):
            assert not flash_attention_available(torch.device("cpu"), torch.bfloat16)
            assert not flash_attention_available(torch.device("cuda"), torch.float32)
            assert flash_attention_available(torch.device("cuda"), torch.bfloat16) is (package is not None)


@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (1, 7), (7, 7), (3, 7), (6, 7)])
def test_the_last_queries_see_what_they_see_in_the_whole_sequence(queries: int, keys: int) -> None:
    q, k, v = (random(2, keys, 4, 6, seed=n) for n in range(3))
    whole = scaled_dot_product(q, k, v, Documents(None, True), scale=0.5)
    last = cached_documents(queries, keys, torch.device("cpu"))
    for kernel in (scaled_dot_product, spelled_out):
        close(kernel(q[:, keys - queries :], k, v, last, scale=0.5), whole[:, keys - queries :])
