"""Links: move trees of tensors between neighbouring pipeline stages.

The first message between two stages is preceded by a header (structure, shapes, types, which tensors need a gradient),
once for training and once for evaluation; afterwards only tensors travel. Gradients come back for the tensors that
need one, in the same order, without a header.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from scaling.core.collectives import ops, tree
from scaling.core.collectives.ops import Group
from scaling.core.errors import ScheduleError

Structure = Any


def describe(value: Any) -> Structure:
    """Return the JSON description of a tree of tensors."""
    match value:
        case Tensor():
            return {"tensor": [list(value.shape), str(value.dtype).removeprefix("torch."), value.requires_grad]}
        case tuple() | list():
            return {"tuple" if isinstance(value, tuple) else "list": [describe(item) for item in value]}
        case dict():
            return {"dict": {key: describe(value[key]) for key in sorted(value)}}
        case None | bool() | int() | float() | str():
            return {"constant": value}
        case _ if is_dataclass(value) and not isinstance(value, type):
            kind = type(value)
            parts = {item.name: describe(getattr(value, item.name)) for item in fields(value)}
            return {"dataclass": f"{kind.__module__}:{kind.__qualname__}", "fields": parts}
    raise ScheduleError(f"a {type(value).__name__} cannot travel between pipeline stages")


def rebuild(structure: Structure, tensors: Iterator[Tensor]) -> Any:
    """Return the tree a description stands for, its tensors taken from `tensors` in the order of `tree.flatten`."""
    if "tensor" in structure:
        return next(tensors)
    if "constant" in structure:
        return structure["constant"]
    if "dict" in structure:
        return {key: rebuild(item, tensors) for key, item in structure["dict"].items()}
    if "dataclass" in structure:
        module, _, name = structure["dataclass"].partition(":")
        kind: Any = importlib.import_module(module)
        for part in name.split("."):
            kind = getattr(kind, part)
        return kind(**{field: rebuild(item, tensors) for field, item in structure["fields"].items()})
    kind = tuple if "tuple" in structure else list
    return kind(rebuild(item, tensors) for item in structure.get("tuple", structure.get("list")))


@dataclass(frozen=True)
class Leaf:
    """Shape, type and need of a gradient of one tensor that travels."""

    path: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    requires_grad: bool


def leaves_of(value: Any) -> tuple[Leaf, ...]:
    """Return what `value` puts on the wire, in order."""
    return tuple(
        Leaf(path, tuple(tensor.shape), tensor.dtype, tensor.requires_grad) for path, tensor in tree.flatten(value)
    )


class Outbox:
    """Sends in flight: tensors must live until their work is done."""

    def __init__(self) -> None:
        self._flying: list[tuple[Tensor, ops.Work]] = []

    def send(self, tensor: Tensor, group: Group, to: int) -> None:
        """Start sending; forget sends that are done."""
        self._flying = [(kept, work) for kept, work in self._flying if not work.is_completed()]
        tensor = tensor.contiguous()
        self._flying.append((tensor, ops.send_start(tensor, group, to=to)))

    def wait(self) -> None:
        """Wait for all sends."""
        for _, work in self._flying:
            work.wait()
        self._flying.clear()


class ActivationSender:
    """Sending end of one stage boundary."""

    def __init__(self, group: Group, peer: int, outbox: Outbox, stage: int) -> None:
        self._group, self._peer, self._outbox, self._stage = group, peer, outbox, stage
        self._announced: dict[bool, tuple[Leaf, ...]] = {}  # by whether gradients are enabled

    def send(self, value: Any, device: torch.device) -> None:
        """Send the output of the stage; the first time with its header."""
        leaves = leaves_of(value)
        announced = self._announced.setdefault(torch.is_grad_enabled(), leaves)
        if announced is leaves:
            header = json.dumps(describe(value)).encode()
            size = torch.tensor([len(header)], dtype=torch.int64, device=device)
            self._outbox.send(size, self._group, self._peer)
            body = torch.frombuffer(bytearray(header), dtype=torch.uint8).to(device)
            self._outbox.send(body, self._group, self._peer)
        elif leaves != announced:
            raise ScheduleError(_changed(self._stage, announced, leaves))
        for _, tensor in tree.flatten(value):
            self._outbox.send(tensor.detach(), self._group, self._peer)

    def forget(self) -> None:
        """Send a header again with the next message."""
        self._announced.clear()


class ActivationReceiver:
    """Receiving end of one stage boundary."""

    def __init__(self, group: Group, peer: int) -> None:
        self._group, self._peer = group, peer
        self._announced: dict[bool, tuple[Structure, tuple[Leaf, ...]]] = {}  # by whether gradients are enabled

    def receive(self, device: torch.device) -> Any:
        """Return the next message; tensors that needed a gradient where they came from need one here."""
        training = torch.is_grad_enabled()
        if training not in self._announced:
            size = ops.receive(torch.empty(1, dtype=torch.int64, device=device), self._group, source=self._peer)
            body = torch.empty(int(size), dtype=torch.uint8, device=device)
            ops.receive(body, self._group, source=self._peer)
            structure = json.loads(bytes(body.tolist()))
            self._announced[training] = structure, tuple(_leaves_in(structure))
        structure, leaves = self._announced[training]
        tensors = [torch.empty(leaf.shape, dtype=leaf.dtype, device=device) for leaf in leaves]
        works = [ops.receive_start(tensor, self._group, source=self._peer) for tensor in tensors]
        for work in works:
            work.wait()
        for leaf, tensor in zip(leaves, tensors, strict=True):
            tensor.requires_grad_(leaf.requires_grad)
        return rebuild(structure, iter(tensors))

    def forget(self) -> None:
        """Expect a header with the next message."""
        self._announced.clear()


def _leaves_in(structure: Structure, path: str = "") -> Iterator[Leaf]:
    if "tensor" in structure:
        shape, dtype, requires_grad = structure["tensor"]
        yield Leaf(path, tuple(shape), getattr(torch, dtype), requires_grad)
    elif "dict" in structure or "dataclass" in structure:
        for name, item in structure.get("dict", structure.get("fields")).items():
            yield from _leaves_in(item, f"{path}.{name}")
    elif "constant" not in structure:
        for index, item in enumerate(structure.get("tuple", structure.get("list"))):
            yield from _leaves_in(item, f"{path}[{index}]")


def _changed(stage: int, old: tuple[Leaf, ...], new: tuple[Leaf, ...]) -> str:
    start = f"the output of pipeline stage {stage} changed between micro-batches"
    if len(old) != len(new):
        return f"{start}: {len(old)} tensors before, {len(new)} now; every micro-batch must have the same structure"
    before, now = next((a, b) for a, b in zip(old, new, strict=True) if a != b)
    return (
        f"{start}: field {before.path or 'output'} was {list(before.shape)} {before.dtype}, now is {list(now.shape)} "
        f"{now.dtype}; pad micro-batches to one shape"
    )
