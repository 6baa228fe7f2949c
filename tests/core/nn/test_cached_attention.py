"""Attention of generation: positions that come bit by bit, among those of other texts, attend as the whole text does.

The texts of a pool come and go as in generation: a text is read in chunks, goes on token by token together with the
others, and when it ends the last row takes its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from unittest.mock import Mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from scaling.core.errors import ConfigError
from scaling.core.nn import cached_attention
from scaling.core.nn.cache_spans import CacheShape, Decode, Prefill, Span
from scaling.core.nn.cached_attention import KeyValueCache, KeyValueCaches, Past, SharedSpans
from scaling.core.nn.scores import Scores
from tests.core.nn.test_attention_maker import SCORES, expected
from tests.reference.compare import close
from tests.reference.worlds import random

FEATURES, WHOLE = 5, 4  # the size of a head, and query heads of the whole layer
CAUSAL = {name: scores for name, scores in SCORES.items() if scores.causal}
ROWS, CAPACITIES = (3, 2), (14, 20)


def cache_of(
    scores: Scores,
    kv_heads: int,
    *,
    heads: range = range(WHOLE),
    rows: Sequence[int] = ROWS,
    dtype: torch.dtype = torch.float64,
) -> KeyValueCache:
    """Return a cache of `kv_heads` heads for pools of texts."""
    shapes = [
        CacheShape.of(scores, rows=count, capacity=capacity, heads=kv_heads, head_size=FEATURES)
        for count, capacity in zip(rows, CAPACITIES, strict=False)
    ]
    return KeyValueCache(shapes, scores, heads=heads, dtype=dtype, device="cpu")


class Text:
    """A text: what goes into attention, and what comes out of it where all positions attend at once."""

    def __init__(self, scores: Scores, kv_heads: int, length: int, *, seed: int, ill: bool) -> None:
        shapes = [(1, length, heads, FEATURES) for heads in (WHOLE, kv_heads, kv_heads)]
        self.inputs = [random(*shape, seed=3 * seed + n) for n, shape in enumerate(shapes)]
        self.outputs = expected(*self.inputs, scores=scores)
        self.length, self.done, self.ill = length, 0, ill
        if ill:
            self.inputs[1:] = [torch.full_like(t, torch.nan) for t in self.inputs[1:]]

    def take(self, count: int) -> slice:
        """Return the next positions."""
        self.done += count
        return slice(self.done - count, self.done)


@dataclass
class Pool:
    """The rows of a pool: first those that go on token by token, then those that are being read."""

    number: int
    texts: list[Text]
    active: int = 0


def step(draw: Random, pools: Sequence[Pool]) -> tuple[list[Span], list[tuple[Text, slice]]]:
    """Choose the spans of a step, and return with them which positions of which texts they are."""
    spans: list[Span] = []
    parts: list[tuple[Text, slice]] = []
    for pool in draw.sample(pools, draw.randint(1, len(pools))):
        active = pool.texts[: pool.active]
        if active and draw.random() < 0.7:
            spans.append(Decode(pool.number, tuple(text.done for text in active)))
            parts += [(text, text.take(1)) for text in active]
        for row, text in list(enumerate(pool.texts))[pool.active :]:
            if draw.random() < 0.7:
                count = draw.randint(1, text.length - text.done)
                spans.append(Prefill(pool.number, row, text.done, count))
                parts.append((text, text.take(count)))
    for pool in pools:  # the rows that have been read far enough go on in the next step
        while pool.active < len(pool.texts) and pool.texts[pool.active].done and draw.random() < 0.8:
            pool.active += 1
    return spans, parts


def leave(draw: Random, pool: Pool, cache: KeyValueCache) -> None:
    """End the texts that are complete, and some others: the last active row moves into the gap, and all behind it."""
    for row in reversed(range(len(pool.texts))):
        text = pool.texts[row]
        if text.done == text.length or draw.random() < 0.1:
            moved = []
            if row < pool.active:
                pool.active -= 1
                moved = [(pool.active, row)] if row != pool.active else []
                row = pool.active
            moved += [(behind, behind - 1) for behind in range(row + 1, len(pool.texts))]
            for source, target in moved:
                cache.move(pool.number, source, target, pool.texts[source].done)
                pool.texts[target] = pool.texts[source]
            pool.texts.pop()


def texts_come_and_go(name: str, kv_heads: int, seed: int) -> None:
    scores, draw = CAUSAL[name], Random(seed)
    cache, pools = cache_of(scores, kv_heads), [Pool(number, []) for number in range(len(ROWS))]
    for number in range(12):
        for pool in pools:
            while len(pool.texts) < ROWS[pool.number] and draw.random() < 0.7:
                length, ill = draw.randint(1, CAPACITIES[pool.number]), draw.random() < 0.3
                pool.texts.append(Text(scores, kv_heads, length, seed=draw.randrange(2**20), ill=ill))
        spans, parts = step(draw, pools)
        if spans:
            inputs = (torch.cat([text.inputs[n][:, part] for text, part in parts], dim=1) for n in range(3))
            whole = cache.attend(SharedSpans(spans), *inputs)
            found = whole.split([part.stop - part.start for _, part in parts], dim=1)
            for (text, part), output in zip(parts, found, strict=True):
                if not text.ill:
                    close(output, text.outputs[:, part], f"step {number}")
        for pool in pools:
            leave(draw, pool, cache)


def short_texts_follow_ill_ones(rank: int, world_size: int) -> None:
    """Let a short text move into the row of a long one that is no number, and another be read into such a row."""
    scores = CAUSAL["plain"]
    long, short, other, last = (
        Text(scores, 2, length, seed=seed, ill=seed == 0) for seed, length in enumerate((10, 4, 3, 13))
    )
    cache = cache_of(scores, 2)

    def attend(span: Span, *texts: Text) -> None:
        parts = [text.take(span.tokens // len(texts)) for text in texts]
        inputs = (torch.cat([t.inputs[n][:, p] for t, p in zip(texts, parts, strict=True)], dim=1) for n in range(3))
        found = cache.attend(SharedSpans([span]), *inputs).split([p.stop - p.start for p in parts], dim=1)
        for text, part, output in zip(texts, parts, found, strict=True):
            if not text.ill:
                close(output, text.outputs[:, part])

    for row in range(2):
        attend(Prefill(0, row, 0, 10), long)
        long.done = 0
    attend(Prefill(0, 2, 0, 3), short)
    cache.move(0, 2, 0, 3)
    attend(Prefill(0, 1, 0, 2), other)
    attend(Prefill(0, 2, 0, 12), last)
    attend(Decode(0, (3, 2, 12)), short, other, last)


def test_what_a_row_held_before_is_never_seen() -> None:
    short_texts_follow_ill_ones(0, 1)


def texts_come_and_go_often(rank: int, world_size: int) -> None:
    """Try it for all scores. The arguments are those of a check of a bug (`tests.mutations.inference_bugs`)."""
    for seed in range(5):
        for name in CAUSAL:
            texts_come_and_go(name, 2, seed)


@given(st.sampled_from(sorted(CAUSAL)), st.sampled_from([4, 2, 1]), st.integers(0, 2**32))
def test_texts_that_come_and_go_attend_as_each_does_alone(name: str, kv_heads: int, seed: int) -> None:
    texts_come_and_go(name, kv_heads, seed)


@pytest.mark.parametrize("heads", [range(2), range(2, 4), range(1, 3)])
@pytest.mark.parametrize("name", CAUSAL)
def test_a_rank_attends_for_its_heads(name: str, heads: range) -> None:
    text = Text(CAUSAL[name], 1, 9, seed=1, ill=False)
    cache, (q, k, v) = cache_of(CAUSAL[name], 1, heads=heads), text.inputs
    own = q[:, :, heads.start : heads.stop]
    for span in (Prefill(0, 0, 0, 4), Prefill(0, 0, 4, 3), Decode(0, (7,)), Decode(0, (8,))):
        part = text.take(span.tokens)
        found = cache.attend(SharedSpans([span]), own[:, part], k[:, part], v[:, part])
        close(found, text.outputs[:, part, heads.start : heads.stop], str(span))


@pytest.mark.parametrize("window", [None, 6, 99])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_caches_take_what_is_planned_at_once(window: int | None, dtype: torch.dtype) -> None:
    scores = Scores(scale=1.0, window=window)
    shapes = [CacheShape.of(scores, rows=3, capacity=length, heads=2, head_size=5) for length in (4, 10)]
    caches = KeyValueCaches(dtype=dtype, device="cpu")
    layers = [nn.Identity(), nn.Identity()]
    for layer in layers:
        caches.add(layer, shapes, scores, heads=range(4))
    planned = 2 * sum(shape.bytes(dtype.itemsize) for shape in shapes)
    assert caches.nbytes == planned
    assert planned == 2 * 2 * 3 * 2 * (4 + (6 if window == 6 else 10)) * 5 * dtype.itemsize
    own = [storage.untyped_storage().nbytes() for layer in layers for storage in caches[layer].memory]
    assert sum(own) == planned


def test_a_window_of_some_heads_saves_nothing() -> None:
    scores = Scores(scale=1.0, window=6, windowed_heads=1)
    assert CacheShape.of(scores, rows=3, capacity=10, heads=2, head_size=5).positions == 10


@pytest.mark.parametrize("name", ["plain", "cap", "window", "window for half a group"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(name: str, dtype: torch.dtype) -> None:
    texts = [Text(CAUSAL[name], 2, 9, seed=seed, ill=False) for seed in range(2)]
    cache, tolerance = cache_of(CAUSAL[name], 2, dtype=dtype), 2 * torch.finfo(dtype).eps
    for text in texts:
        text.inputs = [t.to(dtype) for t in text.inputs]
        text.outputs = expected(*(t.double() for t in text.inputs), scores=CAUSAL[name])
    spans: list[Span] = [
        Prefill(0, 0, 0, 4),
        Prefill(0, 0, 4, 3),
        Prefill(0, 1, 0, 5),
        Decode(0, (7, 5)),
        Decode(0, (8, 6)),
    ]
    for span in spans:
        own = [texts[span.row]] if isinstance(span, Prefill) else texts
        parts = [text.take(span.tokens // len(own)) for text in own]
        inputs = (torch.cat([t.inputs[n][:, p] for t, p in zip(own, parts, strict=True)], dim=1) for n in range(3))
        found = cache.attend(SharedSpans([span]), *inputs)
        assert found.dtype == dtype
        wanted = torch.cat([t.outputs[:, p] for t, p in zip(own, parts, strict=True)], dim=1)
        close(found, wanted, str(span), tolerance=tolerance)


def test_layers_make_what_they_share_once(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, caches = Scores(scale=1.0), KeyValueCaches(dtype=torch.float64, device="cpu")
    layers = [nn.Identity(), nn.Identity()]
    for layer in layers:
        shape = CacheShape.of(scores, rows=2, capacity=9, heads=2, head_size=FEATURES)
        caches.add(layer, [shape], scores, heads=range(4))
    inputs = Text(scores, 2, 9, seed=1, ill=False).inputs
    masks = Mock(wraps=cached_attention._added)
    monkeypatch.setattr(cached_attention, "_added", masks)
    steps: list[list[Span]] = [[Prefill(0, 0, 0, 3), Prefill(0, 1, 0, 2)], [Prefill(0, 0, 3, 2)], [Decode(0, (5, 2))]]
    for spans, made in zip(steps, (0, 1, 2), strict=True):
        past, tokens = Past(caches, spans), sum(span.tokens for span in spans)
        for layer in layers:
            past(layer, *(t[:, :tokens] for t in inputs))
        assert masks.call_count == made


def test_attention_to_later_tokens_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"cannot continue a text .*; give a causal one"):
        cache_of(SCORES["bidirectional"], 2)


def test_inference_mode_and_what_is_outside_write_to_the_same_cache() -> None:
    text = Text(CAUSAL["plain"], 2, 9, seed=1, ill=False)
    with torch.inference_mode():
        cache = cache_of(CAUSAL["plain"], 2)
        cache.attend(SharedSpans([Prefill(0, 0, 0, 8)]), *(t[:, :8] for t in text.inputs))
    found = cache.attend(SharedSpans([Decode(0, (8,))]), *(t[:, 8:] for t in text.inputs))
    close(found, text.outputs[:, 8:])
