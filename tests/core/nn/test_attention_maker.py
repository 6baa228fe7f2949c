"""Every kernel that accepts what scores are computes the same, forward and backward, for every slice of the heads."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.attention.varlen
from torch import Tensor

from scaling.core.nn.attention_choice import KERNELS, AttentionKernel, AttentionNeeds, obstacles
from scaling.core.nn.attention_core import AttentionCore, ScaledDotProduct
from scaling.core.nn.attention_maker import AttentionCoreMaker
from scaling.core.nn.dropout import Dropout
from scaling.core.nn.scores import Scores
from tests.reference import dense, flash
from tests.reference.compare import backward, close, gradient_of
from tests.reference.worlds import random

LENGTHS = ([3, 1, 5], [9], [2, 7])
SAMPLES = torch.tensor([5, 0, 9])
HEADS, KV_HEADS, LENGTH, FEATURES = 4, 2, 9, 6

SCORES = {
    "plain": Scores(scale=0.8),
    "bidirectional": Scores(scale=0.8, causal=False),
    "window": Scores(scale=0.8, window=3),
    "window of itself": Scores(scale=0.8, window=1),
    "window of all": Scores(scale=0.8, window=LENGTH),
    "window on both sides": Scores(scale=0.8, causal=False, window=3),
    "cap": Scores(scale=0.8, cap=1.5),
    "window and cap": Scores(scale=0.8, window=4, cap=1.5),
    "window for a whole group": Scores(scale=0.8, window=2, windowed_heads=2),
    "window for half a group": Scores(scale=0.8, window=2, windowed_heads=3, cap=1.5),
    "window for less than a group": Scores(scale=0.8, window=2, windowed_heads=1),
    "window for no head": Scores(scale=0.8, window=2, windowed_heads=0),
}

TRAINED = (AttentionKernel.SCALED_DOT_PRODUCT, AttentionKernel.SPELLED_OUT)
STOOD_IN = (AttentionKernel.VARIABLE_LENGTH, AttentionKernel.FLASH_ATTN)
"""They need a GPU: what they promise is computed in their place."""


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    package = ModuleType("flash_attn")
    for name in ("flash_attn_func", "flash_attn_varlen_func"):
        monkeypatch.setattr(package, name, getattr(flash, name), raising=False)
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    monkeypatch.setattr(torch.nn.attention.varlen, "varlen_attn", flash.varlen_attn)


def accepts(kernel: AttentionKernel, scores: Scores, *, dropout: bool = False) -> bool:
    """Return whether the table says that a kernel does this, on a device that it runs on."""
    can = KERNELS[kernel]
    dtype, device = (next(iter(known), usual) for known, usual in ((can.dtypes, "float64"), (can.devices, "cpu")))
    size: Any = {"head_size": 64, "grouped": True, "packed": True}
    needs = AttentionNeeds.of(scores, dropout=dropout, dtype=dtype, device=device, **size)
    return not list(obstacles(kernel, needs, found=list(AttentionKernel)))


def projections(dtype: torch.dtype) -> list[Tensor]:
    shapes = [(3, LENGTH, heads, FEATURES) for heads in (HEADS, KV_HEADS, KV_HEADS)]
    return [random(*shape, seed=n).to(dtype).requires_grad_() for n, shape in enumerate(shapes)]


def expected(q: Tensor, k: Tensor, v: Tensor, *, scores: Scores, documents: Tensor | None = None) -> Tensor:
    """Return attention head by head."""
    k, v = (t.repeat_interleave(q.shape[2] // k.shape[2], dim=2) for t in (k, v))
    heads = []
    for head in range(q.shape[2]):
        windowed = scores.windowed_heads is None or head < scores.windowed_heads
        own = (t[:, :, head : head + 1] for t in (q, k, v))
        window = scores.window if windowed else None
        options: dict[str, Any] = {"scale": scores.scale, "causal": scores.causal, "cap": scores.cap}
        heads.append(dense.attend(*own, window=window, documents=documents, **options))
    return torch.cat(heads, dim=2)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("name", SCORES)
def test_every_kernel_that_accepts_scores_computes_them(name: str, packed: bool) -> None:
    scores, documents = SCORES[name], dense.lengths_to_documents(LENGTHS) if packed else None
    reference = projections(torch.float64)
    out = expected(*reference, scores=scores, documents=documents)
    weights = random(*out.shape, seed=7)
    backward(out, weights)
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        for kernel in (*TRAINED, *STOOD_IN):
            if not accepts(kernel, scores):
                continue
            leaves = projections(dtype)
            q, k, v = leaves
            found = AttentionCoreMaker()(kernel, scores, heads=range(HEADS))(q, k, v, documents, SAMPLES)
            assert found.dtype == dtype
            close(found, out, kernel.value, tolerance=tolerance)
            backward(found, weights.to(dtype))
            for leaf, other in zip(leaves, reference, strict=True):
                close(gradient_of(leaf), gradient_of(other), f"{kernel.value}, backward", tolerance=tolerance)


@pytest.mark.parametrize("name", ["window", "window for half a group", "window for less than a group"])
@pytest.mark.parametrize("parts", [2, 4])
def test_a_rank_computes_its_heads_as_the_whole_layer_does(name: str, parts: int) -> None:
    scores, documents = SCORES[name], dense.lengths_to_documents(LENGTHS)
    q, k, v = projections(torch.float64)
    whole = expected(q, k, v, scores=scores, documents=documents)
    size = HEADS // parts
    for kernel in (*TRAINED, *STOOD_IN):
        if accepts(kernel, scores):
            for heads in (range(rank * size, (rank + 1) * size) for rank in range(parts)):
                own = slice(heads.start // 2, (heads.stop - 1) // 2 + 1)  # two query heads share a key
                core = AttentionCoreMaker()(kernel, scores, heads=heads)
                found = core(q[:, :, heads.start : heads.stop], k[:, :, own], v[:, :, own], documents, SAMPLES)
                close(found, whole[:, :, heads.start : heads.stop], kernel.value, tolerance=1e-10)


@pytest.mark.parametrize("name", SCORES)
def test_dropped_probabilities_are_those_of_the_same_scores(name: str) -> None:
    scores, documents = SCORES[name], dense.lengths_to_documents(LENGTHS)
    q, k, v = (t.detach() for t in projections(torch.float64))
    dropout = Dropout(0.4, seed=3, site="scores")
    core = AttentionCoreMaker()(AttentionKernel.SPELLED_OUT, scores, heads=range(HEADS), dropout=dropout)
    keep = dropout.scores_mask(SAMPLES, heads=range(HEADS), queries=LENGTH, keys=LENGTH).double() / 0.6
    wide = [t.repeat_interleave(2, dim=2) for t in (k, v)]
    found = core(q, k, v, documents, SAMPLES)
    for head in range(HEADS):
        own = (t[:, :, head : head + 1] for t in (q, *wide))
        windowed = scores.windowed_heads is None or head < scores.windowed_heads
        one = dense.attend(
            *own,
            scale=scores.scale,
            causal=scores.causal,
            documents=documents,
            window=scores.window if windowed else None,
            cap=scores.cap,
            keep=keep[:, head : head + 1],
        )
        close(found[:, :, head : head + 1], one, tolerance=1e-10)
    assert isinstance(core, torch.nn.Module)
    assert list(core.state_dict()) == []
    core.eval()  # reaches the dropout of all parts
    close(core(q, k, v, documents, SAMPLES), expected(q, k, v, scores=scores, documents=documents), tolerance=1e-10)


def masks_of(core: AttentionCore) -> int:
    assert isinstance(core, ScaledDotProduct)
    return id(core.masks)


def test_layers_of_one_kind_share_their_masks() -> None:
    make, kernel = AttentionCoreMaker(), AttentionKernel.SCALED_DOT_PRODUCT
    kinds = ("plain", "bidirectional", "window", "window on both sides")
    first, second = ([masks_of(make(kernel, SCORES[kind], heads=range(4))) for kind in kinds] for _ in range(2))
    assert first == second
    assert len(set(first)) == len(kinds)


def test_dropout_is_computed_where_the_table_says() -> None:
    assert [kernel for kernel in AttentionKernel if accepts(kernel, SCORES["plain"], dropout=True)] == [
        AttentionKernel.SPELLED_OUT
    ]
