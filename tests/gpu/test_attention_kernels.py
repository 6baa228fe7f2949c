"""Attention kernels on a GPU against attention spelled out: packed, grouped, windowed, capped, forward and backward."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from scaling.core.nn.attention_choice import KERNELS, AttentionKernel, AttentionNeeds, obstacles
from scaling.core.nn.attention_core import AttentionCore
from scaling.core.nn.attention_fused import find_kernels
from scaling.core.nn.attention_maker import AttentionCoreMaker
from scaling.core.nn.attention_masks import DocumentMasks, document_bounds
from scaling.core.nn.scores import Scores
from tests.gpu.waiting import without_waiting
from tests.reference import dense
from tests.reference.compare import backward, gradient_of
from tests.reference.worlds import random

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

GPU = torch.device("cuda")
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
SEQUENCE, HEADS, FEATURES = 256, 8, 64
LENGTHS = ([100, 156], [256], [1, 1, 1, 253], [64, 64, 64, 64])
SAMPLES = torch.arange(4)

SCORES = {
    "plain": Scores(scale=0.125),
    "bidirectional": Scores(scale=0.125, causal=False),
    "window": Scores(scale=0.125, window=40),
    "window of itself": Scores(scale=0.125, window=1),
    "window on both sides": Scores(scale=0.125, causal=False, window=40),
    "cap": Scores(scale=0.5, cap=2.0),
    "window and cap": Scores(scale=0.5, window=40, cap=2.0),
    "window for some heads": Scores(scale=0.125, window=40, windowed_heads=3),
}


def core_of(kernel: AttentionKernel, scores: Scores) -> AttentionCore:
    return AttentionCoreMaker(deterministic=True)(kernel, scores, heads=range(HEADS))


def leaves(dtype: torch.dtype, kv_heads: int, wide: torch.dtype) -> list[Tensor]:
    shapes = [(len(LENGTHS), SEQUENCE, heads, FEATURES) for heads in (HEADS, kv_heads, kv_heads)]
    return [random(*shape, seed=n).to(GPU, dtype).to(wide).requires_grad_() for n, shape in enumerate(shapes)]


def compare(kernel: AttentionKernel, scores: Scores, *, dtype: torch.dtype, kv_heads: int, packed: bool) -> None:
    """Assert that the kernel is as near to float64 as attention spelled out in its precision, or as its rounding."""
    wide, narrow, plain = (leaves(dtype, kv_heads, of) for of in (torch.float64, dtype, dtype))
    documents = dense.lengths_to_documents(LENGTHS).to(GPU) if packed else None
    reference = core_of(AttentionKernel.SPELLED_OUT, scores)
    expected = reference(wide[0], wide[1], wide[2], documents, SAMPLES)
    usual = reference(plain[0], plain[1], plain[2], documents, SAMPLES)
    found = core_of(kernel, scores)(narrow[0], narrow[1], narrow[2], documents, SAMPLES)
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
    for actual, same_precision, exact in triples:
        distance, usual_distance = (
            float((one.double() - exact).norm() / exact.norm()) for one in (actual, same_precision)
        )
        assert distance < max(4 * step, 3 * usual_distance)


@pytest.mark.parametrize("kernel", AttentionKernel)
@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kv_heads", [8, 2])
@pytest.mark.parametrize("packed", [True, False])
def test_every_kernel_that_accepts_scores_computes_them(
    kernel: AttentionKernel, name: str, dtype: str, kv_heads: int, packed: bool
) -> None:
    scores = SCORES[name]
    needs = AttentionNeeds.of(
        scores,
        grouped=kv_heads != HEADS,
        packed=packed,
        dropout=False,
        head_size=FEATURES,
        dtype=dtype,
        device="cuda",
    )
    found = find_kernels(GPU)
    if kernel not in found and KERNELS[kernel].needs:
        pytest.skip(f"{kernel.value} needs {KERNELS[kernel].needs}")
    if not list(obstacles(kernel, needs, found)):
        compare(kernel, scores, dtype=DTYPES[dtype], kv_heads=kv_heads, packed=packed)


def test_the_deterministic_backward_pass_of_flash_attn_repeats_every_bit() -> None:
    if AttentionKernel.FLASH_ATTN not in find_kernels(GPU):
        pytest.skip("needs the optional package flash-attn")
    flash = core_of(AttentionKernel.FLASH_ATTN, Scores(scale=0.125))
    documents = dense.lengths_to_documents(LENGTHS).to(GPU)
    results = []
    for _ in range(2):
        inputs = leaves(torch.bfloat16, HEADS, torch.bfloat16)
        backward(flash(inputs[0], inputs[1], inputs[2], documents, SAMPLES).sum())
        results.append([gradient_of(leaf) for leaf in inputs])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@pytest.mark.parametrize("window", [None, 40])
def test_bounds_and_masks_are_those_of_the_cpu_and_read_nothing_back(window: int | None) -> None:
    documents, like = dense.lengths_to_documents(LENGTHS), torch.empty(len(LENGTHS), SEQUENCE, 1, 1)
    on_gpu, like_on_gpu = documents.to(GPU), like.to(GPU)
    with without_waiting():
        bounds = document_bounds(on_gpu, like_on_gpu)
        mask = DocumentMasks(causal=True, window=window)(on_gpu, like_on_gpu).mask
    assert torch.equal(bounds.cpu(), document_bounds(documents, like))
    expected = DocumentMasks(causal=True, window=window)(documents, like).mask
    assert mask is not None
    assert expected is not None
    assert torch.equal(mask.cpu(), expected)
