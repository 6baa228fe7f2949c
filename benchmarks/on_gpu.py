"""Everything to be measured on one GPU, in under nine minutes: its tests, then training steps of real shapes.

    benchmarks/on_gpu.sh [--seconds 520] [--only PIECE ...] [--results FOLDER] [--toy]

A piece is the tests (`tests/gpu`), or a shape of `benchmarks/shapes` with all its sides, one after the other.
`gpu-<piece>.json` is written when a piece ends. Each gets a share of what time is left; where none is, or after
SIGTERM, what is under way writes what it has, and the rest is left out and named. Another call finds compiled code in
the compiler's cache, so `--only` soon completes what was not. `--toy` runs every line on a CPU. Exit status: 0 if all
pieces are complete, 1 if one has failed, 75 where time did not suffice.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

HERE = Path(__file__).resolve().parent
LEFT_OUT = 75
GRACE = 15.0
"""Seconds that a part gets to write down what it has, after it was asked to."""
LARGE = 120e9
"""Bytes of a GPU on which nothing needs to be recomputed."""


@dataclass(frozen=True)
class Piece:
    """Something to be measured: sides of one shape."""

    shape: str
    sides: tuple[str, ...]
    steps: int
    seconds: float
    """What it should take: its share of the time."""
    overrides: tuple[str, ...] = ()


PIECES = {
    "llama_1b": Piece("llama_1b", ("scaling", "transformers"), 20, 120),
    "llama_3b": Piece("llama_3b", ("scaling", "transformers"), 10, 150),
    "llama_8b_8_layers": Piece("llama_8b_8_layers", ("scaling", "transformers"), 20, 120),
    # Losses of 300 steps with and without 8 bits; a micro-batch a step.
    "float8": Piece("llama_8b_8_layers", ("scaling", "float8"), 300, 200, ("topology.gradient_accumulation_steps=1",)),
}
TOY = {
    "toy": Piece("toy", ("scaling", "transformers"), 5, 240),
    "float8": Piece("toy", ("scaling", "float8"), 10, 240),
}
TESTS_SECONDS = 90.0


@dataclass
class Clock:
    """How much time is left, and which process to end when there is none."""

    until: float
    asked: bool = False
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def ask(self, *_: FrameType | int | None) -> None:
        """Leave: on SIGTERM and Ctrl-C."""
        self.asked = True
        for process in self.running:
            process.terminate()

    @property
    def left(self) -> float:
        """Return the seconds left for work."""
        return 0.0 if self.asked else self.until - time.time() - GRACE

    def run(self, command: list[str], seconds: float) -> int:
        """Run a command for so long at most; return its exit status, negative for a signal."""
        process = subprocess.Popen(command)
        self.running.append(process)
        if self.asked:  # meanwhile
            process.terminate()
        try:
            return process.wait(timeout=max(1.0, seconds))
        except subprocess.TimeoutExpired:
            process.terminate()
            try:
                return process.wait(timeout=GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
                return process.wait()
        finally:
            self.running.remove(process)


def tests(clock: Clock, *, toy: bool) -> dict[str, Any]:
    """Run tests/gpu, of which a CPU skips all."""
    with tempfile.NamedTemporaryFile(suffix=".xml") as file:
        folder = HERE.parent / "tests" / "gpu"
        command = [sys.executable, "-m", "pytest", "-q", "-W", "error", f"--junitxml={file.name}"]
        start = time.time()
        status = clock.run(
            [*command, str(folder / "test_random.py" if toy else folder)], min(clock.left, TESTS_SECONDS)
        )
        return {"complete": status >= 0, "failed": status not in (0, -signal.SIGTERM), "seconds": time.time() - start}


def measured(piece: Piece, clock: Clock, *, toy: bool) -> dict[str, Any]:
    """Run the sides of a piece, each for its share of the time."""
    shape, found = HERE / "shapes" / f"{piece.shape}.yml", {}
    overrides = list(piece.overrides)
    if toy:
        overrides.append("topology.device=cpu")
    elif memory_of_gpu() > LARGE:
        overrides.append("topology.activation_checkpointing_type=disabled")
    until = time.time() + min(clock.left, piece.seconds)
    for number, side in enumerate(piece.sides):
        seconds = min(clock.left, (until - time.time()) / (len(piece.sides) - number))
        if seconds < 1:
            break
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "side.json"
            status = clock.run(
                [
                    *(sys.executable, str(HERE / "gpu_side.py"), side, str(shape), *overrides),
                    *("--until", str(time.time() + seconds), "--steps", str(piece.steps), "--json", str(file)),
                    *(("--compiler", "eager") if toy else ()),
                ],
                seconds + GRACE,
            )
            if file.exists():
                found[side] = json.loads(file.read_text())
            elif status not in (0, -signal.SIGTERM):
                found[side] = {"failed": status}
    return report_of(piece, found)


def report_of(piece: Piece, sides: dict[str, Any]) -> dict[str, Any]:
    """Return what the sides say, and how they compare."""
    report: dict[str, Any] = {
        "complete": all(sides.get(side, {}).get("complete", False) for side in piece.sides),
        "failed": any("failed" in side for side in sides.values()),
        "sides": sides,
    }
    first, second = (sides.get(side, {}) for side in piece.sides)
    if "tokens_per_second" in first and "tokens_per_second" in second:
        speeds = [side["tokens_per_second"] for side in (first, second)]
        if piece.sides[1] == "transformers":
            report["speed_relative_to_transformers"] = speeds[0] / speeds[1]
        else:
            report["speed_of_float8_relative_to_bfloat16"] = speeds[1] / speeds[0]
            last = min(len(first["losses"]), len(second["losses"]), 20)
            means = [sum(side["losses"][-last:]) / last for side in (first, second)]
            report["loss_of_float8_relative_to_bfloat16"] = means[1] / means[0]
    return report


def memory_of_gpu() -> float:
    """Return the bytes of the first GPU, 0 without one."""
    try:
        asked = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
        return float(subprocess.check_output(asked, text=True).splitlines()[0]) * 2**20
    except (OSError, ValueError, IndexError, subprocess.CalledProcessError):
        return 0.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=520.0)
    parser.add_argument("--only", nargs="+", choices=["tests", *PIECES, *TOY])
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--toy", action="store_true")
    options = parser.parse_args()
    clock = Clock(time.time() + options.seconds)
    signal.signal(signal.SIGTERM, clock.ask)
    signal.signal(signal.SIGINT, clock.ask)
    options.results.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    statuses = [0]
    pieces = TOY if options.toy else PIECES
    for name in options.only or ["tests", *pieces]:
        if clock.left < 1:
            sys.stdout.write(f"{name}: left out, no time\n")
            statuses.append(LEFT_OUT)
            continue
        if name == "tests":
            report = tests(clock, toy=options.toy)
        else:
            report = measured(pieces[name], clock, toy=options.toy)
        report = {"command": " ".join(["benchmarks/on_gpu.sh", *sys.argv[1:]]), **report}
        (options.results / f"gpu-{name}.json").write_text(json.dumps(report, indent=2) + "\n")
        told = "failed" if report["failed"] else "complete" if report["complete"] else "not complete"
        told += "".join(f", {key} {value:.3f}" for key, value in report.items() if "relative" in key)
        sys.stdout.write(f"{name}: {told}\n")
        sys.stdout.flush()
        statuses.append(1 if report["failed"] else 0 if report["complete"] else LEFT_OUT)
    return 1 if 1 in statuses else max(statuses)


if __name__ == "__main__":
    sys.exit(main())
