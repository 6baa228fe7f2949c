"""Write the tables of docs/performance.md anew from the results beside this file.

    python3 benchmarks/page.py [--check]

A table stands between `<!-- table: NAME -->` and `<!-- end -->`. `--check` writes nothing and fails where a table is
not what the results say. Pure but for reading the results and reading and writing the page.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "performance.md"
TABLE = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
PARTS = ("data", "forward", "backward", "loss", "communication", "pipeline", "optimizer", "rest")
LAYOUTS = {"one": "one process", "data": "data 2", "tensor": "tensor 2", "pipe": "pipe 2, 4 micro-batches"}


def result(name: str) -> Any:
    """Return what a benchmark found, or None where it has not been kept."""
    file = HERE / "results" / f"{name}.json"
    return json.loads(file.read_text()) if file.exists() else None


def rows(*cells: Iterator[tuple[str, ...]], head: tuple[str, ...]) -> str:
    lines = [head, tuple("---" for _ in head), *(row for part in cells for row in part)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def megabytes(numbers: Any) -> str:
    return " and ".join(f"{number / 2**20:,.0f}" for number in sorted(set(numbers)))


def compared(size: str) -> str:
    """Return our side and the peers in each layout, from the fastest peer on."""

    def lines(layout: str, name: str) -> Iterator[tuple[str, ...]]:
        if (found := result(f"cpu-compare_{layout}_{size}")) is None:
            return
        own = next(side for side, figures in found["sides"].items() if "by_round" not in figures)
        sides = sorted(found["sides"].items(), key=lambda entry: (entry[0] != own, -entry[1]["tokens_per_second"]))
        for side, figures in sides:
            ratio = figures.get(f"speed_of_{own}_relative_to_it")
            yield (
                name,
                side,
                f"{figures['tokens_per_second']:,.0f}",
                "" if ratio is None else f"{ratio:.2f}",
                megabytes(figures["peak_memory_bytes_by_process"]),
            )
        for side in found["failed"]:
            yield name, side, "did not run", "", ""

    return rows(
        *(lines(layout, name) for layout, name in LAYOUTS.items()),
        head=("layout", "side", "tokens per second", "our speed relative to it", "peak MiB by process"),
    )


def budgets() -> str:
    """Return the parts of a step, of each rank, and the share of it that its matrix products alone would take."""

    def lines(name: str, kept: str) -> Iterator[tuple[str, ...]]:
        if (found := result(f"cpu-budget_{kept}")) is None:
            return
        ranks = found["budget"]["by_rank"]
        for number, parts in enumerate(ranks):
            yield (
                name if len(ranks) == 1 else f"{name}, rank {number}",
                f"{found['scaling']['fraction_of_roofline']:.2f}",
                f"{1000 * sum(parts.values()):,.0f}",
                *(f"{100 * parts[part] / sum(parts.values()):.1f}" for part in PARTS),
            )

    return rows(
        *(
            lines(f"{name}, {size}", f"{layout}_{size}")
            for size in ("small", "large")
            for layout, name in LAYOUTS.items()
        ),
        head=("run", "of the roofline", "ms a step", *(f"{part}, %" for part in PARTS)),
    )


def memory() -> str:
    """Return resident memory at two steps, by case."""
    found = result("cpu-memory")

    def lines() -> Iterator[tuple[str, ...]]:
        for name, case in found["cases"].items():
            early, late = (megabytes(case[f"resident_bytes_at_step_{step}"]) for step in (40, 400))
            yield name, early, late, f"{100 * case['growth']:.1f} %"

    return rows(lines(), head=("run", "MiB at step 40", "MiB at step 400", "growth"))


def kinds_of_checkpointing() -> str:
    """Return what each kind of activation checkpointing keeps and takes."""
    found = result("cpu-recompute")

    def lines() -> Iterator[tuple[str, ...]]:
        for name, figures in found["kinds"].items():
            yield name, f"{figures['peak_bytes'] / 2**20:,.1f}", f"{figures['seconds_relative_to_disabled']:.2f}"

    return rows(lines(), head=("kind", "peak MiB of a step", "seconds relative to disabled"))


TABLES: Mapping[str, Callable[[], str]] = {
    "compare_small": lambda: compared("small"),
    "compare_large": lambda: compared("large"),
    "budgets": budgets,
    "memory": memory,
    "recompute": kinds_of_checkpointing,
}


def written(page: str) -> str:
    """Return a page with its tables made anew."""
    return TABLE.sub(lambda found: f"{found[1]}{TABLES[found[2]]()}{found[3]}", page)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--check", action="store_true")
    check = arguments.parse_args().check
    page = PAGE.read_text()
    if check and written(page) != page:
        raise SystemExit(f"{PAGE} is not what the results say; run python3 benchmarks/page.py")
    if not check:
        PAGE.write_text(written(page))


if __name__ == "__main__":
    main()
