"""Measure how many bytes of tensors are alive in the course of a step, for each kind of activation checkpointing.

    python3 benchmarks/memory_curve.py [KEY=VALUE ...] --json benchmarks/results/cpu-memory_curve.json

The picture of docs/parallelism/activation_checkpointing.md shows the result. One process on a CPU; bytes are those
above what is alive before the step, in the order in which memory is taken and given back: the most of each of
`POINTS` equal stretches of that order, which is the same in every run, where times are not.
"""

from __future__ import annotations

import itertools

import torch
from recompute import KINDS, alive_bytes
from reporting import begin, parser, publish
from train_step import DEFAULT, scaling_side

from scaling.core import LaunchContext
from scaling.transformer import TransformerConfig

POINTS = 160


def curve(kind: str, overrides: list[str]) -> list[int]:
    """Return the most bytes alive in each stretch of the third step."""
    config = TransformerConfig.from_dict(
        DEFAULT, [*overrides, f"topology.activation_checkpointing_type={kind}"], quiet=True
    )
    step, _ = scaling_side(
        config, LaunchContext(rank=0, world_size=1, local_rank=0, master_addr="127.0.0.1", master_port=29500)
    )
    step(), step()
    alive = alive_bytes(step)
    cuts = [len(alive) * point // POINTS for point in range(POINTS + 1)]
    return [max(alive[start:stop]) for start, stop in itertools.pairwise(cuts)]


def main() -> None:
    arguments = parser(__doc__, steps=1, rounds=1)
    arguments.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    options = arguments.parse_args()
    torch.set_num_threads(1)
    publish(begin() | {"bytes": {kind: curve(kind, options.overrides) for kind in KINDS}}, options.json)


if __name__ == "__main__":
    main()
