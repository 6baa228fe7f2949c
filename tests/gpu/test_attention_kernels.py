"""Attention kernels on a GPU against attention spelled out in float32: dense, packed, grouped, forward and backward."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from scaling.core.nn.attention_core import FlashAttention
from scaling.core.nn.attention_kernels import (
    DocumentMasks,
    document_bounds,
    flash_attention_available,
    scaled_dot_product,
    spelled_out,
)
from tests.gpu.waiting import without_waiting
from tests.reference import dense
from tests.reference.compare import backward, gradient_of
from tests.reference.worlds import random

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

needs_flash_attn = pytest.mark.skipif(
    not importlib.util.find_spec("flash_attn"), reason="needs the optional package flash-attn"
)

GPU = torch.device("cuda")
HALF = [torch.bfloat16, torch.float16]
SEQUENCE, HEADS, FEATURES = 256, 8, 64
LENGTHS = ([100, 156], [256], [1, 1, 1, 253], [64, 64, 64, 64])
SAMPLES = torch.arange(4)

Kernel = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


def compare(kernel: Kernel, *, dtype: torch.dtype, kv_heads: int, causal: bool, packed: bool) -> None:
    """Assert that the kernel is as near to float64 as attention spelled out in its precision, or as its rounding."""
    shapes = [(len(LENGTHS), SEQUENCE, heads, FEATURES) for heads in (HEADS, kv_heads, kv_heads)]
    wide = [random(*shape, seed=n).to(GPU, dtype).double().requires_grad_() for n, shape in enumerate(shapes)]
    narrow, plain = ([tensor.detach().to(dtype).requires_grad_() for tensor in wide] for _ in range(2))
    documents = dense.lengths_to_documents(LENGTHS).to(GPU) if packed else None
    masks = DocumentMasks(causal=causal)(documents)
    expected = spelled_out(wide[0], wide[1], wide[2], masks, scale=0.125)
    usual = spelled_out(plain[0], plain[1], plain[2], masks, scale=0.125)
    found = kernel(narrow[0], narrow[1], narrow[2], documents)
    assert found.dtype == dtype
    assert found.shape == expected.shape
    gradient = random(*expected.shape, seed=7).to(GPU)
    backward(expected, gradient)
    backward(usual, gradient.to(dtype))
    backward(found, gradient.to(dtype))
    step = torch.finfo(dtype).eps
    triples = [
        (found.detach(), usual.detach(), expected.detach()),
        *((gradient_of(a), gradient_of(b), gradient_of(c)) for a, b, c in zip(narrow, plain, wide, strict=True)),
    ]
    for actual, same_precision, reference in triples:
        distance, usual_distance = (
            float((one.double() - reference).norm() / reference.norm()) for one in (actual, same_precision)
        )
        assert distance < max(4 * step, 3 * usual_distance)


@pytest.mark.parametrize("dtype", [*HALF, torch.float32])
@pytest.mark.parametrize("kv_heads", [8, 2, 1])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("packed", [True, False])
def test_torchs_kernels_are_attention(dtype: torch.dtype, kv_heads: int, causal: bool, packed: bool) -> None:
    masks = DocumentMasks(causal=causal)
    compare(
        lambda q, k, v, documents: scaled_dot_product(q, k, v, masks(documents), scale=0.125),
        dtype=dtype,
        kv_heads=kv_heads,
        causal=causal,
        packed=packed,
    )


@needs_flash_attn
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("kv_heads", [8, 2, 1])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("packed", [True, False])
def test_flash_attns_kernels_are_attention(dtype: torch.dtype, kv_heads: int, causal: bool, packed: bool) -> None:
    assert flash_attention_available(GPU, dtype)
    flash = FlashAttention(scale=0.125, causal=causal, deterministic=True)
    compare(
        lambda q, k, v, documents: flash(q, k, v, documents, SAMPLES),
        dtype=dtype,
        kv_heads=kv_heads,
        causal=causal,
        packed=packed,
    )


@needs_flash_attn
def test_the_deterministic_backward_pass_repeats_every_bit() -> None:
    flash = FlashAttention(scale=0.125, causal=True, deterministic=True)
    documents = dense.lengths_to_documents(LENGTHS).to(GPU)
    results = []
    for _ in range(2):
        q, k, v = (
            random(len(LENGTHS), SEQUENCE, HEADS, FEATURES, seed=n).to(GPU, torch.bfloat16).requires_grad_()
            for n in range(3)
        )
        backward(flash(q, k, v, documents, SAMPLES).sum())
        results.append([gradient_of(leaf) for leaf in (q, k, v)])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_bounds_and_masks_are_those_of_the_cpu_and_read_nothing_back() -> None:
    documents = dense.lengths_to_documents(LENGTHS)
    on_gpu = documents.to(GPU)
    with without_waiting():
        bounds, mask = document_bounds(on_gpu), DocumentMasks(causal=True)(on_gpu).mask
    assert torch.equal(bounds.cpu(), document_bounds(documents))
    expected = DocumentMasks(causal=True)(documents).mask
    assert mask is not None
    assert expected is not None
    assert torch.equal(mask.cpu(), expected)
