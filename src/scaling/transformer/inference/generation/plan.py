"""The memory of a generation, planned before anything runs: pools of rows, their capacities, bytes per rank.

Pure functions, with the same result on all ranks. A pool holds rows of one capacity; rows of similar length share a
pool, so that little memory is kept for positions that no row has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, pairwise
from typing import final

from scaling.core import CacheShape, ConfigError
from scaling.transformer.plan.attention import AttentionPlan
from scaling.transformer.plan.model import ModelPlan

MOST_PADDING = 1.25
"""Largest ratio of the bytes of all pools to those that the rows need by themselves."""
_STEP = 1.05
"""Requests whose lengths differ by a smaller factor are not put into different pools."""
SHARE_OF_FREE = 0.5
"""Share of the free memory that caches may take by default."""

RowBytes = Callable[[int], int]
"""Function from a capacity to the bytes of one row, on the rank that has most."""


@final
@dataclass(frozen=True)
class Need:
    """The memory needs of a request."""

    positions: int
    """Largest number of positions kept: those of the prompt, and of all new tokens but the last, which is not read."""
    rows: int = 1
    """Number of samples of one prompt. They start from one prefill, so they are in one pool."""


@final
@dataclass(frozen=True)
class PoolPlan:
    """Rows of one capacity, which serve some requests one after another."""

    group: int
    """Index of the pipeline's group of rows that the pool belongs to."""
    capacity: int
    rows: int
    requests: tuple[int, ...]
    """Numbers of the requests, in the order in which they are begun."""


@final
@dataclass(frozen=True)
class GenerationPlan:
    """The pools of all groups, and the number of tokens that are computed at a time."""

    pools: tuple[PoolPlan, ...]
    groups: int
    chunk: int
    """Largest number of prompt tokens in one forward pass."""
    bytes: int
    """Bytes of all keys and values. No rank has more; one that runs all layers has as many."""

    def cache_shapes(self, layer: AttentionPlan, parts: int) -> tuple[CacheShape, ...]:
        """Return the shapes of the caches that one of `parts` model ranks keeps for a layer, by pool."""
        one = cache_shape(layer, parts)
        return tuple(replace(one, rows=pool.rows, capacity=pool.capacity) for pool in self.pools)

    def cache_bytes(self, layers: Sequence[AttentionPlan], parts: int, item_size: int) -> int:
        """Return the bytes of all keys and values of some layers on one of `parts` model ranks."""
        return sum(shape.bytes(item_size) for layer in layers for shape in self.cache_shapes(layer, parts))


def attention_layers(model: ModelPlan, layers: range | None = None) -> list[AttentionPlan]:
    """Return the attention of some layers of the model (None: of all), in their order."""
    chosen = (layer for index, layer in enumerate(model.layers()) if layers is None or index in layers)
    return [part for layer in chosen for _, part in layer.parts if isinstance(part, AttentionPlan)]


def cache_shape(layer: AttentionPlan, parts: int) -> CacheShape:
    """Return the shape of a cache for one row of one position. Ranks that share a key-value head each keep it."""
    window = layer.window if layer.windowed_heads is None else None  # heads without a window need all positions
    heads = max(1, layer.kv_heads // parts)
    return CacheShape(rows=1, capacity=1, heads=heads, head_size=layer.head_size, window=window)


def row_bytes(stages: Sequence[Sequence[AttentionPlan]], parts: int, item_size: int) -> RowBytes:
    """Return a function that gives the bytes of a row of a capacity on the stage that has most."""
    shapes = [[cache_shape(layer, parts) for layer in layers] for layers in stages]
    return partial(_row_bytes, shapes, item_size)


def _row_bytes(stages: Sequence[Sequence[CacheShape]], item_size: int, capacity: int) -> int:
    totals = (sum(replace(one, capacity=capacity).bytes(item_size) for one in layers) for layers in stages)
    return max(totals, default=0)


def plan_generation(
    needs: Sequence[Need], *, groups: int, chunk: int, bytes_of: RowBytes, limit: int | None = None
) -> GenerationPlan:
    """Return the pools for some requests, of at most `limit` bytes on a rank (None: enough for all rows at once).

    Requests that do not fit wait. `ConfigError` where not even one fits.
    """
    if chunk < 1:
        raise ConfigError(f"chunk_size ({chunk}) must be at least 1 token")
    every = tuple(_all_pools(needs, groups, bytes_of))
    whole = _bytes(every, bytes_of)
    if limit is None or whole <= limit:
        return GenerationPlan(every, groups, chunk, whole)
    for pools in (every, tuple(_one_pool_each(needs, groups)), tuple(_one_pool_each(needs, 1))):
        if (fewer := _with_fewer_rows(pools, needs, bytes_of, limit)) is not None:
            return GenerationPlan(fewer, groups, chunk, _bytes(fewer, bytes_of))
    largest = max(needs, key=lambda need: need.rows * bytes_of(need.positions))
    least = largest.rows * bytes_of(largest.positions)
    samples = "" if largest.rows == 1 else f", {largest.rows} times"
    raise ConfigError(
        f"keys and values of the longest request ({largest.positions} tokens{samples}) take {least} bytes, but there "
        f"is room for {limit} (max_cache_bytes; where it is not given, half of the memory that is free); allow more, "
        "shorten the prompt, or ask for fewer new tokens"
    )


def _all_pools(needs: Sequence[Need], groups: int, bytes_of: RowBytes) -> Iterator[PoolPlan]:
    """Yield pools that have room for all rows at once: as few as keep the padding small."""
    longest_first = sorted(range(len(needs)), key=lambda number: -needs[number].positions)
    for group in range(groups):
        own = longest_first[group::groups]
        bounds = _bounds([needs[number] for number in own], bytes_of) if own else [0]
        for start, stop in pairwise(bounds):
            yield _pool(own[start:stop], needs, group)


def _bounds(needs: Sequence[Need], bytes_of: RowBytes) -> list[int]:
    """Return the bounds of pools of requests, longest first: of the fewest pools that will do, the cheapest choice."""
    levels = [0]  # places where a pool may begin
    for place, need in enumerate(needs):
        if needs[levels[-1]].positions > _STEP * need.positions:
            levels.append(place)
    row = [bytes_of(needs[level].positions) for level in levels]
    levels.append(len(needs))
    rows_before = list(accumulate((need.rows for need in needs), initial=0))
    most = MOST_PADDING * sum(need.rows * bytes_of(need.positions) for need in needs)

    def bytes_between(start: int, stop: int) -> int:
        return row[start] * (rows_before[levels[stop]] - rows_before[levels[start]])

    cheapest = {stop: (bytes_between(0, stop), [0, stop]) for stop in range(1, len(levels))}
    for _ in row:
        total, bounds = cheapest[len(levels) - 1]
        if total <= most:
            break
        cheapest = {
            stop: min(
                (cheapest[start][0] + bytes_between(start, stop), [*cheapest[start][1], stop])
                for start in cheapest
                if start < stop
            )
            for stop in range(1 + min(cheapest), len(levels))
        }
    return [levels[bound] for bound in bounds]


def _pool(numbers: Sequence[int], needs: Sequence[Need], group: int) -> PoolPlan:
    """Return the pool of some requests, the longest of which is the first."""
    rows = sum(needs[number].rows for number in numbers)
    return PoolPlan(group, needs[numbers[0]].positions, rows, tuple(sorted(numbers)))


def _one_pool_each(needs: Sequence[Need], groups: int) -> Iterator[PoolPlan]:
    longest_first = sorted(range(len(needs)), key=lambda number: -needs[number].positions)
    for group in range(groups):
        if own := longest_first[group::groups]:
            yield _pool(own, needs, group)


def _with_fewer_rows(
    pools: Sequence[PoolPlan], needs: Sequence[Need], bytes_of: RowBytes, limit: int
) -> tuple[PoolPlan, ...] | None:
    """Return the pools with as many of their rows as fit, all in the same proportion; None if none do."""
    least = [max(needs[number].rows for number in pool.requests) for pool in pools]
    for share in range(64, -1, -1):
        fewer = tuple(
            replace(pool, rows=max(rows, pool.rows * share // 64)) for pool, rows in zip(pools, least, strict=True)
        )
        if _bytes(fewer, bytes_of) <= limit:
            return fewer
    return None


def _bytes(pools: Sequence[PoolPlan], bytes_of: RowBytes) -> int:
    return sum(pool.rows * bytes_of(pool.capacity) for pool in pools)
