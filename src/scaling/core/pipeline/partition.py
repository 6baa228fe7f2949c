"""Cut the list of layers into pipeline stages: uniform, balanced by cost, or at given boundaries."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import accumulate, pairwise
from typing import Literal, TypeAlias

from scaling.core.errors import LayoutError

PartitionMethod: TypeAlias = Literal["uniform", "balanced"]


def partition(
    costs: Sequence[float], stages: int, method: PartitionMethod = "uniform", overwrite: Sequence[int] | None = None
) -> tuple[range, ...]:
    """Return the layers of each stage: consecutive, every layer in exactly one stage, no stage empty.

    `costs[i]` is the relative time of layer i and matters to `balanced` only. `overwrite` gives the boundaries
    outright: 0, the first layer of every further stage, the number of layers.
    """
    layers = len(costs)
    if stages < 1:
        raise LayoutError(f"a model needs at least 1 pipeline stage, not {stages}")
    for layer, cost in enumerate(costs):
        if not math.isfinite(cost) or cost < 0:
            raise LayoutError(f"layer {layer} has cost {cost}; a cost is a finite number of at least 0")
    if overwrite is not None:
        boundaries = _explicit(overwrite, layers, stages)
    elif layers < stages:
        raise LayoutError(
            f"{layers} layers cannot fill {stages} pipeline stages, of which each needs at least 1; "
            "lower topology.pipe_parallel_size or topology.pipe_chunks_per_rank, or add layers"
        )
    elif method == "balanced":
        boundaries = _balanced(costs, stages)
    else:
        boundaries = _uniform(layers, stages)
    return tuple(range(start, stop) for start, stop in pairwise(boundaries))


def _uniform(layers: int, stages: int) -> list[int]:
    """Give every stage the same number of layers; the remainder goes to the first stages."""
    size, remainder = divmod(layers, stages)
    return list(accumulate([size + (stage < remainder) for stage in range(stages)], initial=0))


def _explicit(boundaries: Sequence[int], layers: int, stages: int) -> list[int]:
    """Return `boundaries` if they cut `layers` layers into `stages` stages that are not empty."""
    given = f"topology.pipe_partition_overwrite {list(boundaries)}"
    if len(boundaries) != stages + 1:
        raise LayoutError(f"{given} has {len(boundaries)} boundaries; {stages} pipeline stages need {stages + 1}")
    if boundaries[0] != 0 or boundaries[-1] != layers:
        raise LayoutError(f"{given} must start with 0 and end with {layers}, the number of layers")
    for start, stop in pairwise(boundaries):
        if start >= stop:
            raise LayoutError(f"{given} must increase, but {start} is followed by {stop}: a stage would be empty")
    return list(boundaries)


def _balanced(costs: Sequence[float], stages: int) -> list[int]:
    """Minimise the most expensive stage, then the sum of the squared costs, then give early stages more layers.

    The slowest stage sets the pace of the pipeline; the squares spread what is left evenly, so that layers of equal
    cost are cut as `uniform` cuts them. Computed in integers, hence exact.
    """
    exact = [Fraction(cost) for cost in costs]
    scale = math.lcm(*(cost.denominator for cost in exact))
    before = list(accumulate((int(cost * scale) for cost in exact), initial=0))
    layers = len(costs)
    limit = _smallest_limit(before, stages)
    ahead, behind = _furthest(before, stages, limit), _furthest(_mirrored(before), stages, limit)

    # squares[first]: the least sum of squares of layers first.. cut into the stages done so far, from the last one on.
    # A start is skipped if the layers before it do not fit into the stages left. If layers cost about the same, few
    # starts remain, and the time no longer grows as stages times layers.
    none = before[-1] ** 2 + 1  # above any sum of squares
    squares = [none] * layers + [0]
    cuts: list[dict[int, int]] = []
    for done in range(1, stages + 1):
        left = stages - done
        best, cut = [none] * (layers + 1), {}
        for first in range(max(layers - behind[done], left), min(ahead[left], layers - done) + 1):
            least, start = none - 1, before[first]
            for stop in range(first + 1, layers + 1):
                cost = before[stop] - start
                if cost > limit:
                    break
                if (found := cost * cost + squares[stop]) <= least:
                    least, cut[first] = found, stop
            best[first] = least if first in cut else none
        squares = best
        cuts.append(cut)

    boundaries = [0]
    for cut in reversed(cuts):
        boundaries.append(cut[boundaries[-1]])
    return boundaries


def _furthest(before: Sequence[int], stages: int, limit: int) -> list[int]:
    """Return, for 0 to `stages` stages, how many first layers they hold at most, no stage costing above `limit`."""
    layers, reached = len(before) - 1, [0]
    for _ in range(stages):
        stop = reached[-1]
        while stop < layers and before[stop + 1] - before[reached[-1]] <= limit:
            stop += 1
        reached.append(stop)
    return reached


def _mirrored(before: Sequence[int]) -> list[int]:
    """Return the sums of the costs counted from the last layer on."""
    return [before[-1] - cost for cost in reversed(before)]


def _smallest_limit(before: Sequence[int], stages: int) -> int:
    """Return the least cost of the most expensive stage; `before[i]` is the cost of all layers before layer i."""
    low, high = max(stop - start for start, stop in pairwise(before)), before[-1]
    while low < high:
        limit = (low + high) // 2
        used, start = 1, 0
        for layer in range(len(before) - 1):
            if before[layer + 1] - before[start] > limit:
                used, start = used + 1, layer
        low, high = (low, limit) if used <= stages else (limit + 1, high)
    return low
