"""Measure the seconds from the start of a process to the end of its first training step.

    python3 benchmarks/first_step.py [KEY=VALUE ...] [--before DIR] [--rounds 5] [--json FILE]

The model has 84 million parameters unless the overrides say otherwise; the batch is small, so that most of the time is
imports, building the model and filling it. `--before` names another checkout of this repository, which takes turns with
this one: on a shared machine only the ratio means anything.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from reporting import begin, parser, publish

MODEL: dict[str, Any] = {
    "topology": {"model_parallel_size": 1, "pipe_parallel_size": 1, "data_parallel_size": 1, "global_batch_size": 1,
                 "gradient_accumulation_steps": 1},
    "transformer_architecture": {
        "vocab_size": 32768, "hidden_size": 640, "num_layers": 8, "num_attention_heads": 10, "sequence_length": 64,
        "mlp_type": "swiglu", "mlp_factor": 4.0, "mlp_bias": False, "attention_bias": False, "norm_type": "rms",
        "weight_tying": False, "attention_num_kv_heads": 10, "reset_attention_mask": False,
    },
}  # fmt: skip

CHILD = """
import json, sys
from scaling.core import LaunchContext
from scaling.transformer import TransformerConfig
from train_step import scaling_side
config = TransformerConfig.from_dict(json.loads(sys.argv[1]), sys.argv[2:], quiet=True)
launch = LaunchContext(rank=0, world_size=1, local_rank=0, master_addr="127.0.0.1", master_port=29500)
step, _ = scaling_side(config, launch)
print(step())
"""


def seconds_to_first_step(checkout: Path, overrides: list[str]) -> tuple[float, float]:
    """Return the seconds, and the loss of the step."""
    path = os.pathsep.join([str(checkout / "src"), str(checkout / "benchmarks")])
    command = [sys.executable, "-c", CHILD, json.dumps(MODEL), *overrides]
    started = time.perf_counter()
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE, text=True, check=True
    )
    return time.perf_counter() - started, float(done.stdout.split()[-1])


def main() -> None:
    arguments = parser(__doc__, steps=1, rounds=5)
    arguments.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    arguments.add_argument("--before", type=Path, help="another checkout to compare with")
    options = arguments.parse_args()
    sides = {"now": Path(__file__).parents[1]} | ({"before": options.before} if options.before else {})
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    losses: dict[str, float] = {}
    for _ in range(options.rounds + 1):  # the first round fills the page cache
        for name, checkout in sides.items():
            took, losses[name] = seconds_to_first_step(checkout.resolve(), options.overrides)
            seconds[name].append(took)
    report = begin() | {name: {"seconds": statistics.median(seconds[name][1:]), "loss": losses[name]} for name in sides}
    if options.before:
        ratios = [now / before for now, before in zip(seconds["now"][1:], seconds["before"][1:], strict=True)]
        report["relative_to_before"] = statistics.median(ratios)
    publish(report, options.json)


if __name__ == "__main__":
    main()
