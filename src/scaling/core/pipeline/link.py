"""Links: move trees of tensors between neighbouring pipeline stages.

The first message between two stages is preceded by a header (structure, shapes, types, which tensors need a gradient),
once for training and once for evaluation; afterwards only tensors travel. Gradients come back for the tensors that
need one, in the same order, without a header.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from scaling.core.collectives import ops, tree
from scaling.core.collectives.ops import Group
from scaling.core.errors import ScheduleError
from scaling.core.waiting import waits

Structure = Any


def describe(value: Any) -> Structure:
    """Return the JSON description of a tree of tensors."""
    match value:
        case Tensor():
            return {"tensor": [list(value.shape), str(value.dtype).removeprefix("torch."), value.requires_grad]}
        case tuple() if hasattr(value, "_fields"):  # a named tuple
            return _describe_fields(type(value), dict(zip(value._fields, value, strict=True)))
        case tuple() | list():
            return {"tuple" if isinstance(value, tuple) else "list": [describe(item) for item in value]}
        case dict():
            for key in value:
                if not isinstance(key, str):
                    raise ScheduleError(f"a dict that travels between pipeline stages has the key {key!r}; use strings")
            return {"dict": {key: describe(value[key]) for key in sorted(value)}}
        case None | bool() | int() | float() | str():
            return {"constant": value}
        case _ if is_dataclass(value) and not isinstance(value, type):
            return _describe_fields(type(value), {item.name: getattr(value, item.name) for item in fields(value)})
    raise ScheduleError(f"a {type(value).__name__} cannot travel between pipeline stages")


def _describe_fields(cls: type, values: Mapping[str, Any]) -> Structure:
    described = {name: describe(item) for name, item in values.items()}
    return {"class": f"{cls.__module__}:{cls.__qualname__}", "fields": described}


def rebuild(structure: Structure, tensors: Iterator[Tensor]) -> Any:
    """Return the tree that `structure` describes, its tensors taken from `tensors` in the order of `tree.flatten`."""
    if "tensor" in structure:
        return next(tensors)
    if "constant" in structure:
        return structure["constant"]
    if "dict" in structure:
        return {key: rebuild(item, tensors) for key, item in structure["dict"].items()}
    if "class" in structure:
        module, _, name = structure["class"].partition(":")
        cls: Any = importlib.import_module(module)
        for part in name.split("."):
            cls = getattr(cls, part)
        values = {field: rebuild(item, tensors) for field, item in structure["fields"].items()}
        return cls(**values) if issubclass(cls, tuple) else tree.new_dataclass(cls, values)
    sequence = tuple if "tuple" in structure else list
    return sequence(rebuild(item, tensors) for item in structure.get("tuple", structure.get("list")))


@dataclass(frozen=True)
class Leaf:
    """Shape, type and need of a gradient of one tensor that travels."""

    path: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    requires_grad: bool


def leaves_of(structure: Structure, path: str = "") -> Iterator[Leaf]:
    """Yield the tensors that are sent for a value of this description, in order."""
    if "tensor" in structure:
        shape, dtype, requires_grad = structure["tensor"]
        yield Leaf(path, tuple(shape), getattr(torch, dtype), requires_grad)
    elif "dict" in structure:
        for name, item in structure["dict"].items():
            yield from leaves_of(item, f"{path}[{name!r}]")
    elif "class" in structure:
        for name, item in structure["fields"].items():
            yield from leaves_of(item, f"{path}.{name}")
    elif "constant" not in structure:
        for index, item in enumerate(structure.get("tuple", structure.get("list"))):
            yield from leaves_of(item, f"{path}[{index}]")


class Outbox:
    """Sends in flight: tensors must live until their work is done."""

    def __init__(self) -> None:
        self._flying: list[tuple[Tensor, ops.Work]] = []

    def send(self, tensor: Tensor, group: Group, to: int) -> None:
        """Start sending; forget sends that are done."""
        self._flying = [(kept, work) for kept, work in self._flying if not work.is_completed()]
        tensor = tensor.contiguous()
        if (work := ops.send_start(tensor, group, to=to)) is not None:
            self._flying.append((tensor, work))

    @waits
    def wait(self) -> None:
        """Wait for all sends."""
        for _, work in self._flying:
            work.wait()
        self._flying.clear()


class ActivationSender:
    """Sending end of one stage boundary."""

    def __init__(self, group: Group, peer: int, outbox: Outbox, stage: int) -> None:
        self._group, self._peer, self._outbox, self._stage = group, peer, outbox, stage
        self._announced: dict[bool, Structure] = {}  # by whether gradients are enabled

    def send(self, value: Any, device: torch.device) -> None:
        """Send the output of the stage; the first time with its header."""
        structure = describe(value)
        announced = self._announced.setdefault(torch.is_grad_enabled(), structure)
        if announced is structure:
            header = json.dumps(structure).encode()
            size = torch.tensor([len(header)], dtype=torch.int64, device=device)
            self._outbox.send(size, self._group, self._peer)
            body = torch.frombuffer(bytearray(header), dtype=torch.uint8).to(device)
            self._outbox.send(body, self._group, self._peer)
        elif structure != announced:
            raise ScheduleError(_changed(self._stage, announced, structure))
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

    @waits
    def receive(self, device: torch.device) -> Any:
        """Return the next message; tensors that need a gradient on the sending stage need one here."""
        training = torch.is_grad_enabled()
        if training not in self._announced:
            size = ops.receive(torch.empty(1, dtype=torch.int64, device=device), self._group, source=self._peer)
            body = torch.empty(int(size), dtype=torch.uint8, device=device)
            ops.receive(body, self._group, source=self._peer)
            structure = json.loads(bytes(body.tolist()))
            self._announced[training] = structure, tuple(leaves_of(structure))
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


def _changed(stage: int, old: Structure, new: Structure) -> str:
    start = f"the output of pipeline stage {stage} changed between micro-batches"
    before, now = list(leaves_of(old)), list(leaves_of(new))
    if [leaf.path for leaf in before] != [leaf.path for leaf in now]:
        said = (", ".join(leaf.path or "the output" for leaf in leaves) or "no tensors" for leaves in (before, now))
        return f"{start}: {' before, '.join(said)} now; every micro-batch must have the same structure"
    for one, other in zip(before, now, strict=True):
        what = f"{start}: field {one.path or 'output'}"
        if (one.shape, one.dtype) != (other.shape, other.dtype):
            return (
                f"{what} was {list(one.shape)} {one.dtype}, now is {list(other.shape)} {other.dtype}; pad "
                "micro-batches to one shape"
            )
        if one.requires_grad != other.requires_grad:
            needs = ("needs no gradient", "needs a gradient")
            return (
                f"{what} now {needs[other.requires_grad]}, earlier it was the other way; do not let that depend on data"
            )
    return f"{start}: numbers and strings beside the tensors are sent once; make a tensor of what varies"
