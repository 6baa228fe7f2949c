"""Train one model through this library and through others, in turn: tokens per second, memory and ratios.

    python3 benchmarks/compare.py --layout one|data|tensor|pipe [--size small|large] [--peers NAME,...] [KEY=VALUE ...]
                                  [--rounds 8] [--steps 4] [--at-once 4] [--environments DIR] [--json FILE]

Same shapes, batch, AdamW, clipping and float32, on the CPU, with as many threads in all as there are cores. The sides
take turns: a round is some steps of each. Our side lives throughout; of the others `--at-once` live at a time, so that
memory suffices. KEY=VALUE changes our configuration. Each peer has a virtual environment, made on first use in
`--environments`. A peer that fails is reported with its reason.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peers.environments import DEFAULT_FOLDER, NotInstalled, interpreter
from peers.plan import LAYOUTS, MODELS, Peer, chosen, job, ours, world_size
from reporting import begin, parser, publish
from sides import HERE, Side, SideEnded, Work, configured

OURS: dict[str, Any] = {"topology": {"compile": "on"}}
"""The levers of our side, beside the defaults."""
PATIENCE = 240.0
"""Seconds that a side may take to start, or for a turn: a peer that waits for itself is a peer that fails."""


def our_sides(layout: str, size: str, overrides: list[str]) -> list[Side]:
    return [
        Side(
            name,
            configured(
                HERE,
                "scaling_side",
                config=None,
                defaults=config,
                overrides=overrides,
                world_size=world_size(layout),
            ),
        )
        for name, config in ours(layout, size, OURS).items()
    ]


def peer_side(peer: Peer, layout: str, size: str, environments: Path) -> Side:
    """Start the processes of a peer. Raises NotInstalled or SideEnded."""
    work = Work(f"peers.{peer.builder}", peer.arguments | job(layout, size), world_size(layout))
    if peer.environment is None:
        return Side(peer.name, work, patience=PATIENCE)
    return Side(peer.name, work, interpreter=interpreter(peer.environment, environments), patience=PATIENCE)


def rounds_of(sides: list[Side], rounds: int, steps: int, failed: dict[str, str]) -> list[dict[str, list[float]]]:
    """Let sides take turns, back and forth, and return the seconds of each step, by round and side."""
    found: list[dict[str, list[float]]] = []
    for number in range(rounds):
        turns = {}
        for side in sides if number % 2 == 0 else sides[::-1]:
            if side.name in failed:
                continue
            try:
                turns[side.name] = side.turn(steps)
            except SideEnded as ended:
                if side.patience is None:
                    raise
                failed[side.name] = str(ended)
        found.append(turns)
    return found


def comparison(
    turns: Sequence[Mapping[str, Sequence[float]]], tokens_per_step: int, reference: str
) -> dict[str, dict[str, Any]]:
    """Return tokens per second of each side, and of each but the reference the reference's speed relative to it."""
    names = dict.fromkeys(name for turn in turns for name in turn)
    report: dict[str, dict[str, Any]] = {}
    for name in names:
        seconds = [each for turn in turns if name in turn for each in turn[name]]
        report[name] = {"steps": len(seconds), "tokens_per_second": tokens_per_step / statistics.median(seconds)}
        if name != reference:
            ratios = [sum(turn[name]) / sum(turn[reference]) for turn in turns if name in turn]
            report[name][f"speed_of_{reference}_relative_to_it"] = statistics.median(ratios)
            report[name]["by_round"] = ratios
    return report


def main() -> None:
    arguments = parser(__doc__, rounds=8, steps=4)
    arguments.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    arguments.add_argument("--layout", choices=LAYOUTS, default="one")
    arguments.add_argument("--size", choices=tuple(MODELS), default="small")
    arguments.add_argument("--peers", metavar="NAME,...", help="which; a beginning of names will do. Default: all")
    arguments.add_argument("--at-once", type=int, default=4, help="peers that live at a time")
    arguments.add_argument("--environments", type=Path, default=DEFAULT_FOLDER, metavar="DIR")
    options = arguments.parse_intermixed_args()
    report = begin() | {"layout": options.layout, "size": options.size, "model": job(options.layout, options.size)}
    peers = chosen(options.layout, options.peers)

    own = our_sides(options.layout, options.size, options.overrides)
    failed: dict[str, str] = {}
    turns: list[dict[str, list[float]]] = []
    finished: list[Side] = []
    results: dict[str, Any] = {}
    for first in range(0, max(1, len(peers)), options.at_once):
        others = []
        for peer in peers[first : first + options.at_once]:
            try:
                others.append(peer_side(peer, options.layout, options.size, options.environments))
            except (NotInstalled, SideEnded) as problem:
                failed[peer.name] = str(problem)
        turns += rounds_of(own + others, options.rounds, options.steps, failed)
        for side in [side for side in others if side.name not in failed]:
            results[side.name] = side.finish()
            finished.append(side)
    for side in own:
        results[side.name] = side.finish()

    tokens = job(options.layout, options.size)["sequences"] * MODELS[options.size]["sequence"]
    figures = comparison(turns, tokens, own[0].name)
    for side in own + finished:
        ranks = results[side.name]
        last = ranks[-1]  # of a pipeline, the rank that knows the loss
        figures[side.name] |= {
            "processor_seconds_per_step": side.processor_seconds_per_step(),
            "peak_memory_bytes_by_process": [rank.peak_memory_bytes for rank in ranks],
            "resident_memory_bytes_by_process": [rank.resident_memory_bytes for rank in ranks],
            "first_loss": last.first_loss,
            "last_loss": last.loss,
            "steps": sum(len(turn[0].seconds) for turn in side.turns),
            "versions": ranks[0].versions,
        }
    report |= {
        "loss_of_a_guess": math.log(MODELS[options.size]["vocabulary"]),
        "sides": {side.name: figures[side.name] for side in own + finished},
        "failed": failed,
    }
    publish(report, options.json)


if __name__ == "__main__":
    main()
