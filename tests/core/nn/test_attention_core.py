"""Cores of attention: one signature, the kernel that each is for, and probabilities that are dropped."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scaling.core.nn.attention_core import DroppedAttention, HeadsApart, ScaledDotProduct, SpelledOut
from scaling.core.nn.attention_masks import DocumentMasks
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
    spelled = SpelledOut(masks, scale=0.37)
    return DroppedAttention(inner, dropout, spelled, heads=range(4) if heads is None else heads)


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
        parts.append(dropped(0.4, masks=core.spelled.masks, heads=heads)(*own, documents, SAMPLES))
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


@pytest.mark.parametrize(
    ("sizes", "given"),
    [([4, 4], [1, 1]), ([2, 6], [1, 6]), ([3, 1, 4], [1, 1, 1]), ([6, 2], [6, 1]), ([8, 0], [2, 0])],
)
def test_keys_are_repeated_only_for_heads_of_several_groups(sizes: list[int], given: list[int]) -> None:
    """Four query heads share a key; a core is given the keys that its heads have, or one for each head."""
    asked = []

    def core(q_BSHD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor, document_ids: Tensor | None, samples: Tensor) -> Tensor:
        asked.append((q_BSHD.shape[2], k_BSKD.shape[2], v_BSKD.shape[2], document_ids, samples))
        return q_BSHD

    q, k, v = projections(heads=8, kv_heads=2)
    found = HeadsApart([(size, core) for size in sizes if size])(q, k, v, None, SAMPLES)
    assert torch.equal(found, q)
    assert asked == [(size, keys, keys, None, SAMPLES) for size, keys in zip(sizes, given, strict=True) if size]
