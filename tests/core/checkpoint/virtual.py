"""Worlds without processes: ranks as threads over an in-process store, and a model cut the way the engine cuts it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from math import prod
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch._C._distributed_c10d import HashStore

from scaling.core.boxes import Box, GlobalTensor, boxes_of_flat_range, whole
from scaling.core.checkpoint.checkpointer import Checkpointer
from scaling.core.checkpoint.communicator import Communicator, StoreCommunicator

T = TypeVar("T")
SLOTS = ("master", "exp_avg", "exp_avg_sq")


class Cut(NamedTuple):
    """A layout: sizes of the pipe, data and model axes, and whether the optimizer's state is cut over data."""

    pipe: int = 1
    data: int = 1
    model: int = 1
    zero: bool = False

    @property
    def world_size(self) -> int:
        return self.pipe * self.data * self.model


def outcomes_on_ranks(world_size: int, function: Callable[[Communicator], T], *, seconds: float = 60) -> list[Any]:
    """Call `function` with the communicator of each rank, side by side; return results, or exceptions, by rank."""
    store = HashStore()
    outcomes: list[Any] = [None] * world_size

    def target(rank: int) -> None:
        ranks = StoreCommunicator(store, rank, world_size, timeout=timedelta(seconds=seconds))
        try:
            outcomes[rank] = function(ranks)
        except Exception as error:
            outcomes[rank] = error

    threads = [threading.Thread(target=target, args=(rank,)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def on_ranks(world_size: int, function: Callable[[Communicator], T]) -> list[T]:
    """Do the same, but raise the first exception."""
    outcomes = outcomes_on_ranks(world_size, function)
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome
    return outcomes


def shapes(layers: int = 4, hidden: int = 8) -> dict[str, tuple[tuple[int, ...], int | None]]:
    """Return (global shape, dim cut over the model axis) of a small model's parameters."""
    table: dict[str, tuple[tuple[int, ...], int | None]] = {}
    for layer in range(layers):
        table[f"layers.{layer}.up.weight"] = ((4 * hidden, hidden), 0)
        table[f"layers.{layer}.down.weight"] = ((hidden, 4 * hidden), 1)
        table[f"layers.{layer}.norm.weight"] = ((hidden,), None)
    return table


def global_state(seed: int = 0, *, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Return whole tensors with random values: weights in `dtype`, optimizer slots in float32."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, (shape, _) in shapes().items():
        state[name] = torch.randn(shape, generator=generator).to(dtype)
        for slot in SLOTS:
            state[f"optimizer.{slot}.{name}"] = torch.randn(shape, generator=generator)
    state["optimizer.loss_scale"] = torch.tensor(float(seed + 1))
    return state


class RankState:
    """What one rank of a cut holds: model shards, and optimizer slots as ranges of flat buffers (or whole shards)."""

    def __init__(self, cut: Cut, rank: int, *, dtype: torch.dtype = torch.float32) -> None:
        pipe, rest = divmod(rank, cut.data * cut.model)
        data, model = divmod(rest, cut.model)
        self.tensors: list[GlobalTensor] = []
        local: list[tuple[str, tuple[int, ...], Box]] = []
        layers = sorted({name.split(".")[1] for name in shapes()})
        for name, (shape, dim) in shapes().items():
            if layers.index(name.split(".")[1]) * cut.pipe // len(layers) != pipe:
                continue
            box = whole(shape)
            if dim is not None:
                length = shape[dim] // cut.model
                offset = tuple(model * length if index == dim else 0 for index in range(len(shape)))
                box = Box(offset, tuple(length if index == dim else n for index, n in enumerate(shape)))
            view = torch.zeros(box.shape, dtype=dtype)
            owned = data == 0 and (dim is not None or model == 0)
            self.tensors.append(GlobalTensor(name, shape, [(box, view)], owned))
            local.append((name, shape, box))
        parts = cut.data if cut.zero else 1
        padded = -(-sum(box.size for _, _, box in local) // parts) * parts
        part = data if cut.zero else 0
        start, stop = part * padded // parts, (part + 1) * padded // parts
        for slot in SLOTS:
            flat = torch.zeros(stop - start)
            position = 0
            for name, shape, box in local:
                low, high = max(start - position, 0), min(stop - position, box.size)
                views = []
                for inner, first in boxes_of_flat_range(box.shape, low, high):
                    where = position + first - start
                    moved = Box(tuple(a + b for a, b in zip(box.offset, inner.offset, strict=True)), inner.shape)
                    views.append((moved, flat[where : where + prod(inner.shape)].view(inner.shape)))
                owned = (cut.zero or data == 0) and (shapes()[name][1] is not None or model == 0)
                self.tensors.append(GlobalTensor(f"optimizer.{slot}.{name}", shape, views, owned))
                position += box.size
        self.tensors.append(GlobalTensor("optimizer.loss_scale", (), [(whole(()), torch.zeros(()))], rank == 0))

    def fill(self, state: dict[str, Tensor]) -> RankState:
        """Copy this rank's parts of whole tensors."""
        for tensor in self.tensors:
            for box, view in tensor.parts:
                view.copy_(state[tensor.key][box.slices(whole(tensor.shape))])
        return self

    def matches(self, state: dict[str, Tensor]) -> bool:
        """Return whether every part equals the whole tensors, bit for bit."""
        return all(
            torch.equal(view, state[tensor.key][box.slices(whole(tensor.shape))])
            for tensor in self.tensors
            for box, view in tensor.parts
        )


def save_cut(
    directory: Path, step: int, cut: Cut, state: dict[str, Tensor], *, packed: bool = False, **options: Any
) -> list[Path | None]:
    """Save whole tensors from the ranks of a cut."""

    def rank(ranks: Communicator) -> Path | None:
        held = RankState(cut, ranks.rank, dtype=state["layers.0.up.weight"].dtype).fill(state)
        checkpointer = Checkpointer(directory, communicator=ranks, **options)
        path = checkpointer.save(step, held.tensors, {"step": step, "rank": ranks.rank}, packed=packed)
        report = checkpointer.wait()
        return path if report is None else report.path

    return on_ranks(cut.world_size, rank)


def loads_exactly(path: Path, cut: Cut, state: dict[str, Tensor]) -> bool:
    """Return whether every rank of a cut gets exactly its parts of the whole tensors."""

    def rank(ranks: Communicator) -> bool:
        held = RankState(cut, ranks.rank, dtype=state["layers.0.up.weight"].dtype)
        Checkpointer(None, communicator=ranks).load(path, held.tensors)
        return held.matches(state)

    return all(on_ranks(cut.world_size, rank))


def one(key: str, tensor: Tensor, *, owned: bool = True) -> GlobalTensor:
    """Return a whole tensor."""
    return GlobalTensor(key, tuple(tensor.shape), [(whole(tensor.shape), tensor)], owned)


def part(key: str, shape: tuple[int, ...], box: Box, *, owned: bool = True) -> GlobalTensor:
    """Return a part of a tensor of zeros."""
    return GlobalTensor(key, shape, [(box, torch.zeros(box.shape))], owned)


def row(length: int, start: int, stop: int, *, owned: bool = True) -> GlobalTensor:
    """Return elements start..stop of the vector `w`."""
    return part("w", (length,), Box((start,), (stop - start,)), owned=owned)
