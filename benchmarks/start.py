"""Measure the seconds from the start of a command to its answer: the help, and the first step of the README's example.

    python3 benchmarks/start.py [KEY=VALUE ...] [--before DIR] [--rounds 5] [--json FILE]

`help` is `scaling --help`, to its end. `first step` is the first command of the README, runner and all, to the line of
the first optimizer step; the corpus is there already (the first round makes it, and is not counted), nothing is saved,
and the overrides change the configuration. `import torch` is what no training can do without. Processor seconds are
those of all processes of the command, to its end. `--before` names another checkout of this repository, which takes
turns with this one: on a shared machine only the ratios and the processor seconds mean much.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reporting import begin, parser, publish

CONFIG = "examples/transformer_example/config.yml"
FIRST_STEP = "step 1/"
HERE = Path(__file__).resolve().parents[1]


def commands(checkout: Path, overrides: Sequence[str], log_dir: Path) -> dict[str, tuple[list[str], str | None]]:
    """Return what is run, and the words of the line that ends the measurement (None: the command's end does)."""
    settings = [
        "trainer.train_iterations=1",
        "trainer.save_dir=null",
        "trainer.save_interval=null",
        "trainer.eval_interval=null",
        f"logger.log_dir={log_dir}",
        f"data.corpus_dir={HERE / '.data/python_stdlib'}",
        *overrides,
    ]
    example = ["-m", "examples.transformer_example.run", str(checkout / CONFIG), *settings]
    return {
        "import torch": (["-c", "import torch"], None),
        "help": (["-c", "from scaling.cli.main import main; main()", "--help"], None),
        "first step": (example, FIRST_STEP),
    }


def measured(checkout: Path, arguments: list[str], until: str | None) -> tuple[float, float]:
    """Return the seconds until a line of the output has these words, and the processor seconds of the whole command."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(checkout / "src"), str(checkout)])}
    before, started = processor_seconds(), time.perf_counter()
    with subprocess.Popen(
        [sys.executable, *arguments],
        env=environment,
        cwd=checkout,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        seconds, lines = None, []
        for line in process.stdout:
            lines.append(line)
            if until is not None and until in line and seconds is None:
                seconds = time.perf_counter() - started
    if seconds is None and until is None:
        seconds = time.perf_counter() - started
    if process.returncode != 0 or seconds is None:
        raise SystemExit(f"{' '.join(arguments)} ended with {process.returncode}:\n{''.join(lines)}")
    return seconds, processor_seconds() - before


def processor_seconds() -> float:
    """Return those of all processes that this one has waited for, and of theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    arguments = parser(__doc__, rounds=5)
    arguments.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    arguments.add_argument("--before", type=Path, help="another checkout to compare with")
    options = arguments.parse_args()
    report: dict[str, Any] = begin()
    sides = {"now": HERE} | ({"before": options.before.resolve()} if options.before else {})
    taken: dict[str, dict[str, list[tuple[float, float]]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.rounds + 1):  # the first one makes the corpus and fills the page cache
            for side, checkout in sides.items() if number % 2 else reversed(sides.items()):
                for name, (command, until) in commands(checkout, options.overrides, Path(folder, side)).items():
                    taken.setdefault(name, {}).setdefault(side, []).append(measured(checkout, command, until))
    for name, of_sides in taken.items():
        report[name] = {
            side: {
                "seconds": statistics.median(seconds for seconds, _ in values[1:]),
                "fastest_seconds": min(seconds for seconds, _ in values[1:]),
                "processor_seconds": statistics.median(processor for _, processor in values[1:]),
            }
            for side, values in of_sides.items()
        }
        if options.before:
            pairs = list(zip(of_sides["now"][1:], of_sides["before"][1:], strict=True))
            report[name]["seconds_relative_to_before"] = statistics.median(now[0] / old[0] for now, old in pairs)
            report[name]["processor_relative_to_before"] = statistics.median(now[1] / old[1] for now, old in pairs)
    publish(report, options.json)


if __name__ == "__main__":
    main()
