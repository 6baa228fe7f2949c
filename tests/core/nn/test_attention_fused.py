"""Fused kernels, as far as a machine without a GPU can tell: which are found, and what flex attention is told."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.attention.varlen
from torch import Tensor

from scaling.core.nn.attention_choice import AttentionKernel
from scaling.core.nn.attention_fused import FlashAttention, FlexAttention, block_masks, find_kernels
from scaling.core.nn.attention_maker import AttentionCoreMaker
from scaling.core.nn.attention_masks import PerMicroBatch, document_bounds
from scaling.core.nn.scores import Scores
from tests.core.nn.test_attention_maker import LENGTH, LENGTHS, SAMPLES, SCORES, expected, projections
from tests.reference import dense
from tests.reference.compare import close

FLASH, VARLEN, FLEX = AttentionKernel.FLASH_ATTN, AttentionKernel.VARIABLE_LENGTH, AttentionKernel.FLEX
GPU = torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("packages", "capability", "hip", "found"),
    [
        (["triton", "flash_attn"], (9, 0), None, {FLASH, VARLEN, FLEX}),
        (["triton"], (8, 0), None, {VARLEN, FLEX}),
        (["flash_attn"], (8, 6), None, {FLASH, VARLEN}),
        (["triton", "flash_attn"], (7, 5), None, {FLEX}),
        (["triton"], (9, 4), "6.4", {FLEX}),
    ],
)
def test_what_a_gpu_has_is_found(
    packages: list[str],
    capability: tuple[int, int],
    hip: str | None,
    found: set[AttentionKernel],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: SimpleNamespace() if name in packages else None)
    assert find_kernels(GPU) == found
    assert not find_kernels(torch.device("cpu"))
    monkeypatch.setattr(torch.nn.attention.varlen, "varlen_attn", lambda q, k, v, *, scale: None)  # of an older version
    assert find_kernels(GPU) == found - {VARLEN}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not find_kernels(GPU)


def plainly(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


FLEXIBLE = [name for name, scores in SCORES.items() if scores.windowed_heads is None]


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("name", FLEXIBLE)
def test_flex_attention_is_told_what_scores_are(name: str, packed: bool) -> None:
    """Without a compiler it computes on a CPU too, forward."""
    scores, documents = SCORES[name], dense.lengths_to_documents(LENGTHS) if packed else None
    masks = block_masks(causal=scores.causal, window=scores.window, compiler=plainly)
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        q, k, v = (t.detach() for t in projections(dtype))
        found = FlexAttention(scores, masks, compiler=plainly)(q, k, v, documents, SAMPLES)
        assert found.dtype == dtype
        close(
            found, expected(q.double(), k.double(), v.double(), scores=scores, documents=documents), tolerance=tolerance
        )


def test_flex_attention_skips_what_nobody_sees() -> None:
    """A block of 128 keys further away than the window is not among those that are computed."""
    like = torch.empty(1, 512, 1, 1)
    masks = block_masks(causal=True, window=100, compiler=plainly)
    mask = masks(None, like)
    assert mask is not None
    assert masks(None, like) is mask
    blocks = mask.to_dense()[0, 0]
    assert torch.equal(blocks, torch.ones(4, 4, dtype=torch.int32).tril().triu(-1))
    assert block_masks(causal=False, window=None, compiler=plainly)(None, like) is None


def test_layers_of_one_kind_share_what_flex_attention_skips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    make = AttentionCoreMaker()
    cores = [make(FLEX, SCORES[name], heads=range(4)) for name in ("window", "cap", "plain", "window")]
    kinds = []
    for core in cores:
        assert isinstance(core, FlexAttention)
        kinds.append(core._masks)
    assert kinds[0] is kinds[3]
    assert kinds[1] is kinds[2]  # a cap is none of the mask's business
    assert kinds[0] is not kinds[1]


def test_what_flex_attention_computes_with_is_compiled_for_constants(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def compiler(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        asked.append(options)
        return function

    monkeypatch.setattr(torch, "compile", compiler)
    AttentionCoreMaker()(FLEX, SCORES["cap"], heads=range(4))
    assert asked == [{"dynamic": False}] * 2


@pytest.mark.parametrize("deterministic", [True, False])
def test_flash_attention_is_asked_to_repeat_its_bits(deterministic: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it is called with else is what `test_attention_maker.py` computes."""
    asked = []

    def kernel(q: Tensor, *rest: Any, **options: Any) -> Tensor:
        asked.append((rest[-1], options["deterministic"]))
        return q

    package = SimpleNamespace(flash_attn_func=kernel, flash_attn_varlen_func=kernel)
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    q, k, v = projections(torch.float64)
    bounds = PerMicroBatch(document_bounds)
    core = FlashAttention(Scores(scale=1.0), bounds, deterministic=deterministic)
    for documents in (None, dense.lengths_to_documents(LENGTHS)):
        core(q, k, v, documents, SAMPLES)
    assert asked == [(v, deterministic), (LENGTH, deterministic)]
