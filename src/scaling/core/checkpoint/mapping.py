"""Weights as views of a checkpoint's files, mapped into memory: the processes of a machine share their pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from scaling.core.boxes import Box
from scaling.core.checkpoint.files import TORCH_TYPES, TensorFile
from scaling.core.checkpoint.header import ALIGNMENT, Slot
from scaling.core.checkpoint.manifest import Manifest
from scaling.core.checkpoint.search import StoredCheckpoint

Key = TypeVar("Key")


class Held(NamedTuple):
    """A box of a named tensor, and where it starts in a local tensor."""

    tensor: str
    shape: tuple[int, ...]
    """The shape of the whole tensor."""
    box: Box
    place: tuple[int, ...]


@dataclass(frozen=True)
class Wanted:
    """A local tensor, and the boxes of named tensors that it holds."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    held: Sequence[Held]


@dataclass(frozen=True)
class View:
    """Elements of a file: where the first one is, in bytes, and how far apart neighbours are, in elements."""

    file: str
    start: int
    strides: tuple[int, ...]


def plan_view(wanted: Wanted, manifest: Manifest, slots: Mapping[str, Mapping[str, Slot]]) -> View | None:
    """Return the view of a file that equals a local tensor in memory, None where no file has one. Pure.

    The local tensor must have the stored type, consist of named tensors entirely, and be laid out in the file as in
    memory. A view starts at an aligned position, as torch's arrays do: products of unaligned matrices may differ in
    their last bits.
    """
    item = wanted.dtype.itemsize
    found: set[View] = set()
    size = 0
    for held in wanted.held:
        if not held.box.size:
            continue
        entry = manifest.tensors.get(held.tensor)
        if entry is None or entry.shape != held.shape or TORCH_TYPES[entry.dtype] != wanted.dtype:
            return None
        part = next((part for part in entry.parts if held.box.intersect(part.box) == held.box), None)
        if part is None or part.start is not None:
            return None
        strides = _strides(part.box.shape)
        inside = held.box.inside(part.box).offset
        first = sum((a - b) * step for a, b, step in zip(inside, held.place, strides, strict=True))
        found.add(View(part.file, slots[part.file][part.key].start + first * item, strides))
        size += held.box.size
    if len(found) != 1 or size != prod(wanted.shape):
        return None
    view = found.pop()
    return view if view.start % ALIGNMENT == 0 else None


def map_tensors(stored: StoredCheckpoint, wanted: Mapping[Key, Wanted]) -> dict[Key, Tensor]:
    """Return, by key, the local tensors that a verified checkpoint's files hold exactly as they are in memory.

    Nothing is read. Writing to such a tensor copies the page for this process; the file does not change. A file that
    becomes shorter while it is mapped kills the process.
    """
    manifest = stored.manifest
    names = {held.tensor for one in wanted.values() for held in one.held}
    parts = [part for name in names if name in manifest.tensors for part in manifest.tensors[name].parts]
    found: dict[Key, Tensor] = {}
    with ExitStack() as opened:
        files = {
            name: opened.enter_context(TensorFile(stored.path, name, manifest.files[name]))
            for name in sorted({part.file for part in parts})
        }
        slots = {name: file.slots for name, file in files.items()}
        mapped: dict[str, Tensor] = {}
        for key, one in wanted.items():
            if (view := plan_view(one, manifest, slots)) is not None:
                content = mapped.get(view.file)
                if content is None:
                    content = mapped[view.file] = files[view.file].mapped()
                found[key] = _tensor(content, view, one)
    return found


def _strides(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(prod(shape[dim + 1 :]) for dim in range(len(shape)))


def _tensor(content: Tensor, view: View, wanted: Wanted) -> Tensor:
    last = sum((length - 1) * step for length, step in zip(wanted.shape, view.strides, strict=True))
    data = content[view.start : view.start + (last + 1) * wanted.dtype.itemsize].view(wanted.dtype)
    return data.as_strided(wanted.shape, view.strides)
