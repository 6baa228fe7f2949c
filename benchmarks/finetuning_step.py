"""Measure a step of fine-tuning by LoRA against a step that trains all of the same model: time, and peak memory.

    python3 benchmarks/finetuning_step.py [KEY=VALUE ...] [--rank 8] [--layers 30] [--tokens 256] [--rows 4]
                                          [--steps 1] [--rounds 3] [--json FILE]

The model has the shape of SmolLM2-135M, in float32, with random weights; all its linear layers get an update. The
sides live at once, each in processes of its own, and take turns: on a shared machine only the ratios mean anything. A
full step takes three products of each matrix, one of LoRA two: two thirds of their time is the least there is.
"""

from __future__ import annotations

import statistics
from typing import Any

from reporting import begin, parser, publish
from sides import HERE, Side, configured

from scaling.transformer import TransformerConfig
from scaling.transformer.config.presets import preset

EVERY_LINEAR_LAYER = ["query", "key", "value", "dense", "dense_in", "siglu_weight", "dense_out"]


def main() -> None:
    arguments = parser(__doc__, rank=8, layers=30, tokens=256, rows=4, steps=1, rounds=3)
    arguments.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    options = arguments.parse_args()
    architecture = {
        **preset("smollm2-135m"),
        "num_layers": options.layers,
        "sequence_length": options.tokens,
        "precision": "float32",
    }
    whole: dict[str, Any] = {
        "topology": {"model_parallel_size": 1, "pipe_parallel_size": 1, "data_parallel_size": 1,
                     "global_batch_size": options.rows, "gradient_accumulation_steps": 1},
        "trainer": {"seed": 1},
        "transformer_architecture": architecture,
    }  # fmt: skip
    lora = {"rank": options.rank, "alpha": 2.0 * options.rank, "parallel_modules": EVERY_LINEAR_LAYER}
    added = whole | {"transformer_architecture": whole["transformer_architecture"] | {"lora_config": lora}}
    topology = TransformerConfig.from_dict(whole, options.overrides).topology
    sides = [
        Side(
            name,
            configured(
                HERE,
                "scaling_side",
                config=None,
                defaults=config,
                overrides=options.overrides,
                world_size=topology.world_size,
            ),
        )
        for name, config in (("full", whole), ("lora", added))
    ]
    seconds: dict[str, list[float]] = {side.name: [] for side in sides}
    for number in range(options.rounds):
        for side in sides if number % 2 == 0 else reversed(sides):
            seconds[side.name].append(side.run(options.steps))
    results = {side.name: side.finish() for side in sides}
    report = begin()
    for name in seconds:
        report[name] = {
            "seconds_per_step": statistics.median(seconds[name]),
            "peak_memory_bytes_per_process": max(result.peak_memory_bytes for result in results[name]),
            "loss": results[name][0].loss,
        }
    ratios = [lora / full for full, lora in zip(seconds["full"], seconds["lora"], strict=True)]
    memory = [report[name]["peak_memory_bytes_per_process"] for name in ("full", "lora")]
    report["time_relative_to_full"] = statistics.median(ratios)
    report["time_relative_to_full_by_round"] = ratios
    report["memory_relative_to_full"] = memory[1] / memory[0]
    publish(report, options.json)


if __name__ == "__main__":
    main()
