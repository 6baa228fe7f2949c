"""Measure training steps of a configuration in a layout, against a bare PyTorch loop of the same model.

    python3 benchmarks/train_step.py [KEY=VALUE ...] [--config FILE] [--steps 5] [--rounds 5] [--no-bare] [--json FILE]

Both sides live at once, each in processes of its own, and take turns: a round is some steps of one and then of the
other, so that a machine whose speed drifts treats them alike. Reported are medians over the rounds, and the median of
the ratios round by round: on a shared machine only the ratio means anything. The bare side takes part where the layout
is data parallel only (DistributedDataParallel for several processes).
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import socket
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from bare_loop import BareModel
from reporting import begin, parser, publish
from torch import Tensor

from scaling.core import Axis, LaunchContext, MicroBatch, Optimizer, ParallelModule, Topology
from scaling.transformer import CrossEntropyLoss, TransformerConfig, layer_specs
from scaling.transformer.data.batch import TextInputs, TextTargets
from scaling.transformer.flops import flops_per_token
from scaling.transformer.train import parameter_groups

DEFAULT: dict[str, Any] = {
    "topology": {"model_parallel_size": 1, "pipe_parallel_size": 1, "data_parallel_size": 1, "global_batch_size": 8,
                 "gradient_accumulation_steps": 1},
    "optimizer": {"zero": True},
    "transformer_architecture": {
        "vocab_size": 8192, "hidden_size": 256, "num_layers": 4, "num_attention_heads": 4, "sequence_length": 256,
        "mlp_type": "swiglu", "mlp_factor": 2.75, "mlp_bias": False, "attention_bias": False, "norm_type": "rms",
        "weight_tying": False, "reset_attention_mask": False, "precision": "float32",
    },
}  # fmt: skip


@dataclass(frozen=True)
class Result:
    """What one process reports at the end."""

    peak_memory_bytes: int
    loss: float


def tokens(config: TransformerConfig, rows: int, device: torch.device) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    length = config.transformer_architecture.sequence_length
    ids = torch.randint(config.transformer_architecture.vocab_size, (rows, length + 1), generator=generator)
    return ids[:, :-1].contiguous().to(device), ids[:, 1:].contiguous().to(device)


def scaling_side(config: TransformerConfig, launch: LaunchContext) -> tuple[Callable[[], float], torch.device]:
    """Return a function that runs one step of the library and returns its loss."""
    topology = Topology.connect(config.topology, launch)
    architecture = config.transformer_architecture
    module = ParallelModule(layer_specs(architecture, topology, seed=1), topology, config.topology, seed=1)
    batch = config.topology
    optimizer = Optimizer(
        config.optimizer,
        parameter_groups(config, module, topology),
        topology,
        module=module,
        usual_weight=batch.global_batch_size * architecture.sequence_length,
    )
    loss_function = CrossEntropyLoss(architecture.vocab_size, topology)
    rows, length, device = batch.micro_batch_size, architecture.sequence_length, topology.device
    ids, targets = tokens(config, rows, device)
    positions = torch.arange(length, device=device).expand(rows, length)
    micro_batch = MicroBatch(
        TextInputs(ids, positions, None, torch.arange(rows, device=device)),
        TextTargets(targets, torch.ones(rows, length, device=device)),
    )

    def batches() -> Iterator[MicroBatch]:
        while True:
            yield micro_batch

    steps = iter(range(1, sys.maxsize))
    stream = batches()

    def step() -> float:
        loss = module.train_step(stream, loss_function, gradient_scale=optimizer.gradient_scale)
        optimizer.step(next(steps), weight=loss.weight)
        return float(loss.loss)

    return step, device


def bare_side(config: TransformerConfig, launch: LaunchContext) -> tuple[Callable[[], float], torch.device]:
    """Return a function that runs one step of the bare loop and returns its loss."""
    architecture, batch = config.transformer_architecture, config.topology
    cuda = torch.cuda.is_available() and batch.device.value != "cpu"
    device = torch.device("cuda", launch.local_rank) if cuda else torch.device("cpu")
    torch.manual_seed(1)
    bare = BareModel(
        vocabulary=architecture.vocab_size,
        hidden=architecture.hidden_size,
        layers=architecture.num_layers,
        heads=architecture.num_attention_heads,
        intermediate=architecture.mlp_size,
        sequence=architecture.sequence_length,
    ).to(device, architecture.precision.dtype)
    model: torch.nn.Module = bare
    if launch.world_size > 1:
        torch.distributed.init_process_group(
            "nccl" if cuda else "gloo",
            init_method=f"tcp://127.0.0.1:{launch.master_port}",
            rank=launch.rank,
            world_size=launch.world_size,
        )
        model = torch.nn.parallel.DistributedDataParallel(bare, gradient_as_bucket_view=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), fused=True)
    ids, targets = tokens(config, batch.micro_batch_size, device)
    parts = batch.gradient_accumulation_steps

    def step() -> float:
        for _ in range(parts):
            loss = model(ids, targets)
            (loss / parts).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step, device


def worker(side: str, config: dict[str, Any], rank: int, world: int, port: int, pipe: Connection) -> None:
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // world))
    loaded = TransformerConfig.from_dict(config, quiet=True)
    launch = LaunchContext(rank=rank, world_size=world, local_rank=rank, master_addr="127.0.0.1", master_port=port)
    step, device = (scaling_side if side == "scaling" else bare_side)(loaded, launch)
    loss = step()
    pipe.send("ready")
    for count in iter(pipe.recv, 0):
        begin = time.perf_counter()
        for _ in range(count):
            loss = step()
        pipe.send(time.perf_counter() - begin)
    memory = (
        torch.cuda.max_memory_allocated(device)
        if device.type == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    pipe.send(Result(memory, loss))


class Side:
    """The processes of one side; they sleep while the other side runs."""

    def __init__(self, name: str, config: dict[str, Any], world: int) -> None:
        self.name = name
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        context = multiprocessing.get_context("spawn")
        self.pipes: list[Any] = []
        self.processes = []
        for rank in range(world):
            here, there = context.Pipe()
            process = context.Process(target=worker, args=(name, config, rank, world, port, there), daemon=True)
            process.start()
            self.pipes.append(here)
            self.processes.append(process)
        for pipe in self.pipes:
            assert pipe.recv() == "ready"

    def run(self, steps: int) -> float:
        """Run steps and return the seconds of one, of the slowest process."""
        for pipe in self.pipes:
            pipe.send(steps)
        return max(pipe.recv() for pipe in self.pipes) / steps

    def finish(self) -> list[Result]:
        for pipe in self.pipes:
            pipe.send(0)
        results = [pipe.recv() for pipe in self.pipes]
        for process in self.processes:
            process.join()
        return results


def matrix_rate(dtype: torch.dtype) -> float:
    """Return the operations per second of a large matrix product on all of this machine."""
    cuda = torch.cuda.is_available()
    size = 8192 if cuda else 1024
    a = torch.randn(size, size, dtype=dtype, device="cuda" if cuda else "cpu")
    best = float("inf")
    for _ in range(10):
        begin = time.perf_counter()
        a @ a
        if cuda:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - begin)
    return 2 * size**3 / best


def main() -> None:
    arguments = parser(__doc__, steps=5, rounds=5)
    arguments.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    arguments.add_argument("--config", type=Path)
    arguments.add_argument("--no-bare", action="store_true")
    options = arguments.parse_args()
    config = (
        TransformerConfig.from_yaml(options.config, options.overrides)
        if options.config
        else TransformerConfig.from_dict(DEFAULT, options.overrides)
    )
    topology = config.topology
    world, plain = topology.world_size, config.as_dict()
    data_only = world == topology.data_parallel_size
    names = ["scaling"] + ([] if options.no_bare or not data_only else ["bare"])
    rate = matrix_rate(
        torch.float32 if config.transformer_architecture.precision.value == "float32" else torch.bfloat16
    )
    sides = [Side(name, plain, world) for name in names]
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(options.rounds):
        for side in sides if number % 2 == 0 else reversed(sides):
            seconds[side.name].append(side.run(options.steps))
    results = {side.name: side.finish() for side in sides}

    tokens_per_step = topology.global_batch_size * config.transformer_architecture.sequence_length
    operations = flops_per_token(config.transformer_architecture) * tokens_per_step
    report = begin() | {
        "layout": {axis.value: topology.layout.size(axis) for axis in Axis},
        "matrix_product_flops_per_second": rate,
    }
    for name in names:
        median = statistics.median(seconds[name])
        report[name] = {
            "seconds_per_step": median,
            "tokens_per_second": tokens_per_step / median,
            "fraction_of_matrix_product_rate": operations / median / rate,
            "peak_memory_bytes_per_process": max(result.peak_memory_bytes for result in results[name]),
            "loss": results[name][0].loss,
        }
    if len(names) == 2:
        ratios = [bare / own for own, bare in zip(seconds["scaling"], seconds["bare"], strict=True)]
        report["speed_relative_to_bare"] = statistics.median(ratios)
        report["memory_relative_to_bare"] = (
            report["scaling"]["peak_memory_bytes_per_process"] / report["bare"]["peak_memory_bytes_per_process"]
        )
    publish(report, options.json)


if __name__ == "__main__":
    main()
