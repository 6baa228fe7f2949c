"""Measure whether resident memory grows while a training goes on: at step 400 against step 40, in several layouts.

    python3 benchmarks/memory.py [CASE ...] [--steps 400] [--vocabulary 4096] [--untrimmed] [--json FILE]

Each case is a run of the trainer on synthetic text, each rank a process. Layouts are pipe x data x model. `--untrimmed`
takes away what keeps memory from growing (`core/pipeline/host_memory.py`), to show what it is for.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

from reporting import begin, parser, publish

MODEL_2 = {"model_parallel_size": 2}
CASES: dict[str, dict[str, Any]] = {
    "1x1x1": {},
    "2x1x1": {"topology": {"pipe_parallel_size": 2, "gradient_accumulation_steps": 2}},
    "1x2x1": {"topology": {"data_parallel_size": 2}},
    "1x1x2": {"topology": MODEL_2},
    "sequence parallel": {"topology": {**MODEL_2, "sequence_parallel": True}},
    "recomputed": {"topology": {**MODEL_2, "activation_checkpointing_type": "every_layer"}},
    "validated": {"topology": MODEL_2, "trainer": {"eval_interval": 50, "eval_iterations": 4}},
}
EARLY = 40
"""The step with which the last one is compared."""


def settings_of(case: dict[str, Any], *, steps: int, vocabulary: int) -> dict[str, Any]:
    """Return the configuration of a case: a model whose blocks are of the sizes that fragment a heap, and quick."""
    axes = {f"{axis}_parallel_size": 1 for axis in ("model", "pipe", "data")}
    topology = {"device": "cpu", "global_batch_size": 4, "gradient_accumulation_steps": 1, **axes}
    sizes = {"vocab_size": vocabulary, "hidden_size": 32, "num_layers": 1, "num_attention_heads": 2}
    trainer = {"train_iterations": steps, "save_interval": None, "log_interval": 10}
    return {
        "topology": topology | case.get("topology", {}),
        "trainer": trainer | case.get("trainer", {}),
        "transformer_architecture": {**sizes, "sequence_length": 64},
    }


def measured(settings: dict[str, Any], *, trimmed: bool) -> list[list[int]]:
    """Return the resident bytes after each step, of each rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = 1
    for axis in ("model", "pipe", "data"):
        world *= settings["topology"][f"{axis}_parallel_size"]
    path = os.pathsep.join([str(Path(__file__).parents[1] / "src"), os.environ.get("PYTHONPATH", "")])
    given = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world), "PYTHONPATH": path}
    command = [sys.executable, __file__, "--rank", json.dumps([settings, trimmed])]
    processes = [
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **given, "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
        )
        for rank in range(world)
    ]
    answers = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise SystemExit("a rank failed; what it said is above")
    return [json.loads(answer.splitlines()[-1]) for answer in answers]


def train(settings: dict[str, Any], *, trimmed: bool) -> list[int]:
    """Train as one rank, and return the resident bytes after each step."""
    from scaling.core import (
        LaunchContext,
        Learner,
        RunIdentity,
        StepReport,
        Topology,
        TrainerHook,
        TrainerView,
        run_training,
    )
    from scaling.core.pipeline import host_memory
    from scaling.transformer import TransformerConfig
    from scaling.transformer.recipe import recipe_of
    from scaling.transformer.verify.synthetic import synthetic_text

    resident: list[int] = []

    class Watch(TrainerHook):
        def after_step(self, trainer: TrainerView, report: StepReport) -> None:
            resident.append(host_memory.resident_bytes())

    def none_of(memory: Any, device: object) -> None:
        memory._trim = None

    config = TransformerConfig.from_dict(settings, quiet=True)
    untrimmed = mock.patch.object(host_memory.HostMemory, "__init__", none_of)
    if not trimmed:
        untrimmed.start()
    with Topology.connect(config.topology, LaunchContext.from_environment()) as topology:
        recipe = recipe_of(config, synthetic_text(config, 1000), synthetic_text(config, 100))
        run_training(config, Learner(recipe, config.topology, topology), RunIdentity(config), hooks=[Watch()])
    return resident


def main() -> None:
    if sys.argv[1:2] == ["--rank"]:
        settings, trimmed = json.loads(sys.argv[2])
        with os.fdopen(os.dup(1), "w") as answers:
            os.dup2(2, 1)  # whatever a library prints goes beside the answer
            answers.write(json.dumps(train(settings, trimmed=trimmed)) + "\n")
        return
    arguments = parser(__doc__, steps=400, vocabulary=4096)
    arguments.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; none: all")
    arguments.add_argument("--untrimmed", action="store_true")
    options = arguments.parse_args()
    report = begin() | {"cases": {}}
    for name in options.cases or CASES:
        start = time.perf_counter()
        settings = settings_of(CASES[name], steps=options.steps, vocabulary=options.vocabulary)
        ranks = measured(settings, trimmed=not options.untrimmed)
        report["cases"][name] = {
            "growth": max(resident[-1] / resident[EARLY - 1] for resident in ranks) - 1,
            f"resident_bytes_at_step_{EARLY}": [resident[EARLY - 1] for resident in ranks],
            f"resident_bytes_at_step_{options.steps}": [resident[-1] for resident in ranks],
            "most_resident_bytes": [max(resident) for resident in ranks],
            "seconds": time.perf_counter() - start,
        }
    publish(report, options.json)


if __name__ == "__main__":
    main()
