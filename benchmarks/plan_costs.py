"""Time what one rank computes at its start to know what to do, in worlds that are only imagined.

    python3 benchmarks/plan_costs.py [--json FILE]

Part of `overhead.py`. A rank plans for itself alone, so nothing here is done for all ranks: the proof that a schedule
has no deadlock, which needs all of them, is a test of the schedules over every shape up to a size, not part of a start.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

from reporting import begin, parser, publish

from scaling.core.data.sampler import BatchGeometry, EpochOrder, items_of, training_positions
from scaling.core.optimizer.flat_buffer import plan, plan_whole
from scaling.core.pipeline.lowering import lower
from scaling.core.pipeline.partition import partition
from scaling.core.pipeline.schedules import ForwardOnly, Interleaved1F1B, OneFOneB, Schedule

BUCKET = 500_000_000
HIDDEN, PER_LAYER = 4096, 9
"""Features, and parameters of a layer."""
EMBEDDING, HEAD = 0.3, 2.5
"""Their costs, in layers."""

Plans = Iterator[tuple[str, Callable[[], object]]]


def plans_of(schedule: Schedule, ranks: int, micro_batches: int, layers: int, *, data_ranks: int) -> Plans:
    """Yield what a rank in the middle of the pipeline plans when it starts to train, by name."""
    stages, rank = schedule.stages.over(ranks), ranks // 2
    costs = [EMBEDDING, *[1.0] * layers, HEAD]
    shapes = [HIDDEN * HIDDEN] * (PER_LAYER - 2) + [HIDDEN] * 2
    sizes = shapes * -(-layers // len(stages)) * len(stages.stages_of(rank))
    geometry = BatchGeometry(data_ranks, 1, micro_batches)
    yield "partition", lambda: partition(costs, len(stages), "balanced")
    yield "schedule", lambda: lower(schedule, rank, ranks, micro_batches)
    yield "evaluation schedule", lambda: lower(ForwardOnly(schedule.stages), rank, ranks, micro_batches)
    yield "buffers", lambda: plan(sizes, bucket_size=BUCKET, parts=data_ranks)
    yield "buffers of whole matrices", lambda: plan_whole(sizes, bucket_size=BUCKET, parts=data_ranks)
    yield "samples of a step", lambda: samples(geometry, data_ranks - 1, micro_batches)


def samples(geometry: BatchGeometry, data_rank: int, micro_batches: int) -> list[list[int]]:
    """Return the samples that a rank reads in one step, far into a large data set."""
    order = EpochOrder(10**9, key=(1,))
    positions = training_positions(10**8, geometry, data_parallel_rank=data_rank)
    return [items_of(order, of_one) for of_one in islice(positions, micro_batches)]


def seconds_of(plans: Plans) -> dict[str, float]:
    """Return the processor seconds of each plan, and of all of them."""
    found = {}
    for name, make in plans:
        begin = time.process_time()
        make()
        found[name] = time.process_time() - begin
    return {**found, "total": sum(found.values())}


CASES: Sequence[tuple[int, int, int]] = ((8, 32, 32), (64, 256, 256), (256, 1024, 1024), (1024, 4096, 1024))
"""Ranks of the pipeline, micro-batches, layers."""


def plan_costs() -> list[dict[str, Any]]:
    """Return the cost of one rank's plans in ever larger worlds."""
    report = []
    for ranks, micro_batches, layers in CASES:
        for name, schedule in (("1f1b", OneFOneB()), ("interleaved, 4 stages a rank", Interleaved1F1B(4))):
            stages = len(schedule.stages.over(ranks))
            for deep in sorted({max(layers, stages), 4096}):
                found = seconds_of(plans_of(schedule, ranks, micro_batches, deep, data_ranks=ranks))
                case = {"schedule": name, "pipe_ranks": ranks, "data_ranks": ranks, "stages": stages}
                report.append({**case, "micro_batches": micro_batches, "layers": deep, "cpu_seconds": found})
    return report


def main() -> None:
    options = parser(__doc__).parse_args()
    publish(begin() | {"plans": plan_costs()}, options.json)


if __name__ == "__main__":
    main()
