"""Attention kernels of one signature against attention query by query, packed rows against their documents alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from scaling.core.nn.attention_kernels import scaled_dot_product, spelled_out
from scaling.core.nn.attention_masks import DocumentMasks, Visible
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
    out = kernel(q, k, v, DocumentMasks(causal=causal)(documents, q), scale=0.37)
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
    packed = kernel(q, k, v, masks(dense.lengths_to_documents(LENGTHS), q), scale=0.5)
    for row, lengths in enumerate(LENGTHS):
        start = 0
        for length in lengths:
            part = (slice(row, row + 1), slice(start, start + length))
            close(packed[part], kernel(q[part], k[part], v[part], masks(None, q[part]), scale=0.5))
            start += length


def test_dropped_probabilities_are_left_out_and_the_rest_scaled() -> None:
    q, k, v = (t.detach() for t in projections())
    keep = torch.rand(3, 4, 8, 8, generator=torch.Generator().manual_seed(0)) > 0.25
    documents = dense.lengths_to_documents(LENGTHS)
    out = spelled_out(q, k, v, DocumentMasks(causal=True)(documents, q), scale=0.5, keep=keep, probability=0.25)
    close(out, dense.attend(q, k, v, scale=0.5, causal=True, documents=documents, keep=keep.double() / 0.75))


def test_attention_is_nothing_where_all_probabilities_are_dropped() -> None:
    q, k, v = projections()
    keep = torch.zeros(3, 4, 8, 8, dtype=torch.bool)
    out = spelled_out(q, k, v, DocumentMasks(causal=True)(None, q), scale=0.5, keep=keep, probability=1.0)
    backward(out, torch.ones_like(out))
    for tensor in (out, *map(gradient_of, (q, k, v))):
        assert not tensor.any()


@KERNELS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_on_a_cpu_is_float32_rounded_once(kernel: object, dtype: torch.dtype) -> None:
    assert callable(kernel)
    halves = [t.detach().to(dtype) for t in projections()]
    out = kernel(*halves, Visible(None, True), scale=0.5)
    assert out.dtype == dtype
    assert torch.equal(out, kernel(*(t.float() for t in halves), Visible(None, True), scale=0.5).to(dtype))


def test_float32_is_not_widened_and_float64_not_narrowed() -> None:
    q, k, v = (t.detach() for t in projections())
    for dtype in (torch.float32, torch.float64):
        for kernel in (scaled_dot_product, spelled_out):
            assert kernel(q.to(dtype), k.to(dtype), v.to(dtype), Visible(None, True), scale=1.0).dtype == dtype
