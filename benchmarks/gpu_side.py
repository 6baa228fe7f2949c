"""Steps of one shape on one GPU by one side; writes what it has measured when it ends, or is asked to.

    python3 benchmarks/gpu_side.py SIDE SHAPE --until UNIX_TIME --json FILE [--steps 20] [KEY=VALUE ...]

SIDE is `scaling`, `float8` (the same with all products of the blocks in 8 bits) or `transformers`. The first steps,
which compile, are told apart. The host waits for the device once in a few steps.
"""

from __future__ import annotations

import itertools
import json
import signal
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from gpu_peer import transformers_step
from reporting import begin, parser
from torch import Tensor

from scaling.core import (
    BaseDataset,
    LaunchContext,
    Learner,
    Loading,
    MicroBatch,
    Topology,
    TopologyConfig,
    find_kernels,
)
from scaling.transformer import TransformerConfig
from scaling.transformer.config.model_plan import plan_of
from scaling.transformer.io import TextInputs, TextTargets
from scaling.transformer.layers.kernels import told_of_kernels
from scaling.transformer.recipe import recipe_of

PEAK = 989e12
"""Operations per second of dense bfloat16 products on H100 and H200, by their data sheets."""
FLOAT8_SECTIONS = (
    "fp8_config_attention",
    "fp8_config_attention_dense_out",
    "fp8_config_mlp",
    "fp8_config_mlp_dense_out",
)
WARM_UP = 3
CHUNK = 5
"""Steps between two looks at the clock."""


def batches_of(config: TransformerConfig, device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """Return micro-batches of tokens that can be learned: most follow from the one before by one rule."""
    rows, length = config.topology.micro_batch_size, config.transformer_architecture.sequence_length
    vocabulary, count = config.transformer_architecture.vocab_size, 64
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(min(vocabulary, 1024), (count * rows, length + 1), generator=generator)
    noise = torch.rand(ids.shape, generator=generator) < 0.2
    for position in range(1, length + 1):
        follows = (ids[:, position - 1] * 31 + 7) % min(vocabulary, 1024)
        ids[:, position] = torch.where(noise[:, position], ids[:, position], follows)
    ids = ids.to(device).view(count, rows, length + 1)
    return [(one[:, :-1].contiguous(), one[:, 1:].contiguous()) for one in ids]


class OnDevice(BaseDataset[Any]):
    """Data that cost nothing to read: micro-batches that are on the device already, in turn."""

    def __init__(self, batches: Sequence[tuple[Tensor, Tensor]]) -> None:
        self.micro_batches = itertools.cycle([micro_batch(ids, targets) for ids, targets in batches])

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> None:
        return None

    def collate(self, samples: Sequence[Any], positions: Sequence[int], valid: Sequence[bool]) -> MicroBatch:
        return next(self.micro_batches)

    def fingerprint(self) -> str:
        return "on the device"


def micro_batch(ids: Tensor, targets: Tensor) -> MicroBatch:
    rows, length = ids.shape
    positions = torch.arange(length, device=ids.device).expand(rows, length)
    weights = torch.ones(rows, length, device=ids.device)
    return MicroBatch(
        TextInputs(ids, positions, None, torch.arange(rows, device=ids.device)), TextTargets(targets, weights)
    )


def scaling_step(
    config: TransformerConfig, topology: Topology, batches: Sequence[tuple[Tensor, Tensor]]
) -> Callable[[], Tensor]:
    learner = Learner(
        recipe_of(config, OnDevice(batches)), config.topology, topology, loading=Loading(pin_memory=False)
    )
    steps = itertools.count(1)

    def step() -> Tensor:
        loss, _ = learner.step(next(steps))
        return loss.loss.detach().clone()

    return step


class Stop:
    """Whether it is time to end: by the clock, or because somebody asks."""

    def __init__(self, until: float) -> None:
        self.until = until
        self.asked = False
        signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, *_: Any) -> None:
        self.asked = True

    def before(self, seconds: float) -> bool:
        """Return whether what takes so long would end too late."""
        return self.asked or time.time() + seconds > self.until


def measure(step: Callable[[], Tensor], stop: Stop, *, steps: int, device: torch.device) -> dict[str, Any]:
    """Take steps until there are enough, or no time is left; return seconds and losses."""

    def take(number: int) -> float:
        start = time.perf_counter()
        losses.extend(step() for _ in range(number))
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    losses: list[Tensor] = []
    warm_up, seconds = [take(1) for _ in range(WARM_UP)], []
    while len(losses) < WARM_UP + steps and not stop.before(CHUNK * warm_up[-1]):
        seconds.append(take(CHUNK) / CHUNK)
    return {
        "first_steps_seconds": warm_up,
        "seconds_per_step": statistics.median(seconds) if seconds else warm_up[-1],
        "steps": len(losses),
        "losses": torch.stack(losses).tolist(),
        "complete": len(losses) >= WARM_UP + steps,
    }


def figures(config: TransformerConfig, seconds: float) -> dict[str, float]:
    """Return tokens per second and what share of the peak of the device that is."""
    architecture, batch = config.transformer_architecture, config.topology.global_batch_size
    tokens = batch * architecture.sequence_length / seconds
    products = plan_of(architecture).multiply_adds
    return {
        "tokens_per_second": tokens,
        "mfu_full_attention": 6 * (products.matrices + products.scores) * tokens / PEAK,
        "mfu_causal_attention": 6 * (products.matrices + products.scores / 2) * tokens / PEAK,
    }


def main() -> None:
    arguments = parser(__doc__, steps=20)
    arguments.add_argument("side", choices=["scaling", "float8", "transformers"])
    arguments.add_argument("shape", type=Path)
    arguments.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    arguments.add_argument("--until", type=float, required=True)
    arguments.add_argument("--compiler", default="inductor", help="backend of torch.compile for transformers")
    options = arguments.parse_args()
    stop = Stop(options.until)
    overrides = list(options.overrides)
    if options.side == "float8":
        overrides += [f"transformer_architecture.{name}={{granularity: tensor}}" for name in FLOAT8_SECTIONS]
    if options.side != "transformers" and "compile" in TopologyConfig.model_fields:
        overrides.append("topology.compile=on")
    config = TransformerConfig.from_yaml(options.shape, overrides)
    topology = Topology.connect(config.topology, LaunchContext(rank=0, world_size=1, local_rank=0))
    device = topology.device
    report = begin() | {"side": options.side, "shape": options.shape.stem}
    batches = batches_of(config, device)
    if options.side == "transformers":
        step = transformers_step(config, batches, compiler=options.compiler)
    else:
        step = scaling_step(config, topology, batches)
        report["kernels"] = told_of_kernels(plan_of(config.transformer_architecture), device.type, find_kernels(device))
    report |= measure(step, stop, steps=options.steps, device=device)
    report |= figures(config, report["seconds_per_step"])
    if device.type == "cuda":
        report["peak_memory_bytes"] = torch.cuda.max_memory_allocated(device)
    if options.json is not None:
        options.json.write_text(json.dumps(report))
    sys.stdout.write(
        f"{options.side:13}{options.shape.stem:20}{report['tokens_per_second']:12.0f} tokens/s, "
        f"{100 * report['mfu_full_attention']:.1f} % MFU ({100 * report['mfu_causal_attention']:.1f} % causal)\n"
    )
    topology.close()


if __name__ == "__main__":
    main()
