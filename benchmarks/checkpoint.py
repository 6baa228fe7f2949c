"""Measure saving and loading checkpoints, against torch.distributed.checkpoint, torch.load and a plain file copy.

    python3 benchmarks/checkpoint.py [--ranks 2] [--tensors 48] [--rows 1024] [--columns 1024] [--rounds 5]
                                     [--dir DIR] [--json FILE]

Every tensor is float32 and cut along its rows over the ranks. The two sides take turns in the same processes: each
round saves and loads once with either, in alternating order, so that a machine whose speed drifts treats them alike.
Both force their files to the disk. Only this library verifies what it reads: its loading includes a digest of every
byte. The same bytes are also copied from file to file (`plain copy`, forced to the disk as well), and read by
`torch.load` with `weights_only`: into new memory, as it does; copied into the tensors that a training has; and mapped,
which reads nothing before the copy. All files are in the page cache. Reported are medians of the slowest rank, and the
median of the ratios round by round: on a shared machine only the ratios mean anything. Processor seconds are those of
all ranks. What is read back is compared with what was saved.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from reporting import begin, parser, publish
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from scaling.core import Box, Checkpointer, GlobalTensor, StoreCommunicator

DISTRIBUTED = "torch.distributed.checkpoint"
LOADS = ("torch.load", "torch.load and copy", "torch.load mapped and copy")
ACTIONS = (
    "scaling save",
    "scaling load",
    "scaling asynchronous save",
    f"{DISTRIBUTED} save",
    f"{DISTRIBUTED} load",
    "plain copy",
    *LOADS,
)


def local_rows(rows: int, rank: int, ranks: int) -> range:
    """Return the rows that a rank holds, as torch's Shard(0) cuts them."""
    size = -(-rows // ranks)
    return range(min(rank * size, rows), min((rank + 1) * size, rows))


def actions_of(rank: int, options: argparse.Namespace, store: dist.Store) -> dict[str, Callable[[], None]]:
    """Return what this rank can be asked to do."""
    mine = local_rows(options.rows, rank, options.ranks)
    shape, held = (options.rows, options.columns), (len(mine), options.columns)
    box = Box((mine.start, 0), held)
    generator = torch.Generator().manual_seed(rank)
    names = [f"layers.{number}.weight" for number in range(options.tensors)]
    values = {name: torch.randn(held, generator=generator) for name in names}
    into = {name: torch.empty(held) for name in names}
    mesh = init_device_mesh("cpu", (options.ranks,))
    folder = Path(options.dir)
    communicator = StoreCommunicator(store, rank, options.ranks)
    blocking = Checkpointer(folder / "scaling", communicator=communicator)
    background = Checkpointer(folder / "asynchronous", communicator=communicator, asynchronous=True)

    def parts(tensors: dict[str, Tensor]) -> list[GlobalTensor]:
        return [GlobalTensor(name, shape, [(box, tensor)]) for name, tensor in tensors.items()]

    def sharded(tensors: dict[str, Tensor]) -> dict[str, DTensor]:
        stride = (options.columns, 1)
        return {
            name: DTensor.from_local(tensor, mesh, [Shard(0)], shape=torch.Size(shape), stride=stride)
            for name, tensor in tensors.items()
        }

    def check() -> None:
        assert all(torch.equal(values[name], into[name]) for name in names)

    def scaling_load() -> None:
        blocking.load(folder / "scaling", parts(into))

    def torch_load() -> None:
        dcp.load(sharded(into), checkpoint_id=folder / DISTRIBUTED)

    pickled = folder / f"{rank}.pt"
    torch.save(values, pickled)

    def plain_copy() -> None:
        target = pickled.with_suffix(".copy")
        shutil.copyfile(pickled, target)
        with target.open("rb") as copied:
            os.fsync(copied.fileno())

    def copied(*, mmap: bool) -> None:
        found = torch.load(pickled, weights_only=True, mmap=mmap)
        for name, tensor in into.items():
            tensor.copy_(found[name])

    return {
        "scaling save": lambda: blocking.save(1, parts(values), {}) and None,
        "scaling load": scaling_load,
        "scaling asynchronous save": lambda: background.save(1, parts(values), {}) and None,
        "wait": lambda: background.wait() and None,
        f"{DISTRIBUTED} save": lambda: dcp.save(sharded(values), checkpoint_id=folder / DISTRIBUTED) and None,
        f"{DISTRIBUTED} load": torch_load,
        "plain copy": plain_copy,
        "torch.load": lambda: torch.load(pickled, weights_only=True) and None,
        "torch.load and copy": lambda: copied(mmap=False),
        "torch.load mapped and copy": lambda: copied(mmap=True),
        "forget": lambda: [tensor.zero_() for tensor in into.values()] and None,
        "check": check,
    }


def worker(rank: int, options: argparse.Namespace, port: int, pipe: Connection) -> None:
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // options.ranks))
    store = dist.TCPStore("127.0.0.1", port, options.ranks, is_master=rank == 0)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=options.ranks)
    actions = actions_of(rank, options, dist.PrefixStore("benchmark", store))
    pipe.send("ready")
    for name in iter(pipe.recv, ""):
        begin, worked = time.perf_counter(), time.process_time()
        actions[name]()
        pipe.send((time.perf_counter() - begin, time.process_time() - worked))
    dist.destroy_process_group()


def measure(options: argparse.Namespace) -> dict[str, list[tuple[float, float]]]:
    """Return the seconds of the slowest rank and the processor seconds of all, for each action, round by round."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    pipes: list[Any] = []
    for rank in range(options.ranks):
        here, there = context.Pipe()
        context.Process(target=worker, args=(rank, options, port, there), daemon=True).start()
        pipes.append(here)
    for pipe in pipes:
        assert pipe.recv() == "ready"

    def ask(name: str) -> tuple[float, float]:
        for pipe in pipes:
            pipe.send(name)
        answers = [pipe.recv() for pipe in pipes]
        return max(took for took, _ in answers), sum(worked for _, worked in answers)

    def turn(side: str) -> None:
        shutil.rmtree(Path(options.dir, side), ignore_errors=True)
        seconds[f"{side} save"].append(ask(f"{side} save"))
        ask("forget")
        seconds[f"{side} load"].append(ask(f"{side} load"))
        ask("check")

    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ACTIONS}
    for number in range(options.rounds + 1):  # the first one warms up
        sides = ["scaling", DISTRIBUTED]
        for side in sides if number % 2 == 0 else reversed(sides):
            turn(side)
        for name in ("plain copy", *LOADS):
            seconds[name].append(ask(name))
            if name.endswith("and copy"):
                ask("check")
            ask("forget")
        shutil.rmtree(Path(options.dir, "asynchronous"), ignore_errors=True)
        seconds["scaling asynchronous save"].append(ask("scaling asynchronous save"))
        ask("wait")
    for pipe in pipes:
        pipe.send("")
    return {name: values[1:] for name, values in seconds.items()}


def main() -> None:
    arguments = parser(__doc__, ranks=2, tensors=48, rows=1024, columns=1024, rounds=5)
    arguments.add_argument("--dir", type=Path, help="a folder on the disk to measure; default: a temporary one")
    options = arguments.parse_args()
    report = begin()
    with tempfile.TemporaryDirectory(dir=options.dir) as folder:
        options.dir = folder
        seconds = measure(options)
    size = options.tensors * options.rows * options.columns * 4
    report |= {"bytes": size, "ranks": options.ranks}
    for name, values in seconds.items():
        median = statistics.median(took for took, _ in values)
        report[name] = {
            "seconds": median,
            "processor_seconds": statistics.median(worked for _, worked in values),
            "gigabytes_per_second": size / median / 1e9,
        }
    others = {"save": (f"{DISTRIBUTED} save", "plain copy"), "load": (f"{DISTRIBUTED} load", *LOADS)}
    for what, names in others.items():
        for name in names:
            pairs = zip(seconds[f"scaling {what}"], seconds[name], strict=True)
            report[f"{what}_speed_relative_to_{name.removesuffix(f' {what}').replace(' ', '_')}"] = statistics.median(
                other / ours for (ours, _), (other, _) in pairs
            )
    publish(report, options.json)


if __name__ == "__main__":
    main()
