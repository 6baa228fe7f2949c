"""Cores of attention: one signature, the kernel that each is for, and the cache of generation."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from scaling.core.nn.attention_core import (
    CachedAttention,
    DroppedAttention,
    FlashAttention,
    KeyValueCache,
    ScaledDotProduct,
)
from scaling.core.nn.attention_kernels import DocumentMasks, Documents, document_bounds, scaled_dot_product
from scaling.core.nn.dropout import Dropout, DropoutStream
from scaling.core.nn.place import Place
from tests.reference import dense
from tests.reference.compare import close
from tests.reference.worlds import random, view_of

LENGTHS = ([3, 1, 4], [8], [2, 6])
SAMPLES = torch.tensor([5, 0, 9])


def projections(*, heads: int = 4, kv_heads: int = 4, length: int = 8) -> list[Tensor]:
    shapes = [(3, length, heads, 6), (3, length, kv_heads, 6), (3, length, kv_heads, 6)]
    return [random(*shape, seed=n) for n, shape in enumerate(shapes)]


def dropped(
    probability: float, *, masks: DocumentMasks, place: Place | None = None, heads: range | None = None, **options: Any
) -> DroppedAttention:
    dropout = Dropout(probability, seed=3, site="scores", place=place, **options)
    inner = ScaledDotProduct(masks, scale=0.37)
    return DroppedAttention(inner, dropout, masks, scale=0.37, heads=range(4) if heads is None else heads)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("packed", [True, False])
def test_the_usual_core_attends_within_documents(causal: bool, packed: bool) -> None:
    q, k, v = projections()
    documents = dense.lengths_to_documents(LENGTHS) if packed else None
    core = ScaledDotProduct(DocumentMasks(causal=causal), scale=0.37)
    close(core(q, k, v, documents, SAMPLES), dense.attend(q, k, v, scale=0.37, causal=causal, documents=documents))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("packed", [True, False])
def test_probabilities_are_dropped_by_the_numbers_of_their_heads(causal: bool, packed: bool) -> None:
    q, k, v = projections()
    documents = dense.lengths_to_documents(LENGTHS) if packed else None
    core = dropped(0.4, masks=DocumentMasks(causal=causal))
    keep = core.dropout.scores_mask(SAMPLES, heads=range(4), queries=8, keys=8)
    options: dict[str, Any] = {"scale": 0.37, "causal": causal, "documents": documents}
    whole = core(q, k, v, documents, SAMPLES)
    close(whole, dense.attend(q, k, v, keep=keep.double() / 0.6, **options))
    parts = []
    for heads in (range(0, 1), range(1, 4)):
        own = (t[:, :, heads.start : heads.stop] for t in (q, k, v))
        parts.append(dropped(0.4, masks=core.masks, heads=heads)(*own, documents, SAMPLES))
    close(torch.cat(parts, dim=2), whole)


@pytest.mark.parametrize("probability", [0.0, 0.4])
def test_nothing_is_dropped_where_dropout_is_not_active(probability: float) -> None:
    q, k, v = projections()
    masks, documents = DocumentMasks(causal=True), dense.lengths_to_documents(LENGTHS)
    core = dropped(probability, masks=masks)
    if probability:
        assert not torch.equal(core(q, k, v, documents, SAMPLES), core.inner(q, k, v, documents, SAMPLES))
        core.eval()  # reaches the dropout inside
    assert torch.equal(core(q, k, v, documents, SAMPLES), core.inner(q, k, v, documents, SAMPLES))


def test_a_core_has_no_parameters() -> None:
    core = dropped(0.4, masks=DocumentMasks(causal=True))
    assert isinstance(core, nn.Module)
    assert list(core.state_dict()) == []


@pytest.mark.parametrize("rank", [0, 3])
def test_the_stream_of_a_rank_drops_probabilities_of_its_own(rank: int) -> None:
    stream: DropoutStream = "per_rank"
    q, k, v = projections()

    def draw(rank: int) -> list[Tensor]:
        view = view_of(rank, data=2, model=2)
        view.rng.seed(7)
        core = dropped(0.5, masks=DocumentMasks(causal=True), place=Place(view), stream=stream)
        return [core(q, k, v, None, SAMPLES) for _ in range(2)]

    own = draw(rank)
    assert not torch.equal(own[0], own[1])
    assert all(torch.equal(one, again) for one, again in zip(own, draw(rank), strict=True))
    for other in range(4):
        assert torch.equal(own[0], draw(other)[0]) == (other == rank)


@given(chunks=st.lists(st.integers(1, 9), min_size=1, max_size=8))
def test_a_cache_returns_all_it_was_given_in_order(chunks: list[int]) -> None:
    cache, length = KeyValueCache(), sum(chunks)
    keys, values = random(2, length, 3, 4, seed=1), random(2, length, 3, 4, seed=2)
    start = 0
    for chunk in chunks:
        part = slice(start, start + chunk)
        found = cache.append(keys[:, part], values[:, part])
        start += chunk
        assert cache.length == start
        assert torch.equal(found[0], keys[:, :start])
        assert torch.equal(found[1], values[:, :start])


def test_a_cache_seldom_moves_what_it_holds() -> None:
    cache, one = KeyValueCache(), random(1, 1, 1, 1, seed=1)
    kept = [cache.append(one, one)[0] for _ in range(64)]
    assert len({keys.data_ptr() for keys in kept}) <= 7  # 1, 2, 4, ... 64 positions


@pytest.mark.parametrize("chunks", [[8], [5, 3], [1] * 8, [4, 1, 1, 2]])
@pytest.mark.parametrize("kv_heads", [4, 1])
def test_new_positions_attend_to_all_before_them(chunks: list[int], kv_heads: int) -> None:
    q, k, v = projections(kv_heads=kv_heads)
    whole = scaled_dot_product(q, k, v, Documents(None, True), scale=0.37)
    core, start = CachedAttention(KeyValueCache(), scale=0.37), 0
    for chunk in chunks:
        part = slice(start, start + chunk)
        close(core(q[:, part], k[:, part], v[:, part], None, SAMPLES), whole[:, part])
        start += chunk
    assert core.cache.length == 8


def test_flash_attention_is_asked_for_rows_or_for_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package needs a GPU: what it is called with is what can be tested without one."""
    calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def record(name: str) -> Any:
        def kernel(q: Tensor, *rest: Any, **options: Any) -> Tensor:
            calls.append((name, (q, *rest), options))
            return q + 1

        return kernel

    package = ModuleType("flash_attn")
    monkeypatch.setattr(package, "flash_attn_func", record("dense"), raising=False)
    monkeypatch.setattr(package, "flash_attn_varlen_func", record("packed"), raising=False)
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    q, k, v = projections(kv_heads=2)
    core, documents = FlashAttention(scale=0.37, causal=True, deterministic=True), dense.lengths_to_documents(LENGTHS)
    assert torch.equal(core(q, k, v, None, SAMPLES), q + 1)
    assert torch.equal(core(q, k, v, documents, SAMPLES), q + 1)
    options = {"softmax_scale": 0.37, "causal": True, "deterministic": True}
    assert [(name, given) for name, _, given in calls] == [("dense", options), ("packed", options)]
    assert all(one is other for one, other in zip(calls[0][1], (q, k, v), strict=True))
    flat = [t.flatten(0, 1) for t in (q, k, v)]
    bounds = document_bounds(documents)
    for one, other in zip(calls[1][1], (*flat, bounds, bounds, 8, 8), strict=True):
        assert torch.equal(torch.as_tensor(one), torch.as_tensor(other))
