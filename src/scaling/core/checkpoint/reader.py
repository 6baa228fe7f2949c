"""Read stored tensors, or boxes of them, by name, and derive new checkpoints or differences. One process."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, final

import torch
from torch import Tensor

from scaling.core.boxes import Box, whole
from scaling.core.checkpoint.files import TORCH_TYPES, Scratch, TensorFile
from scaling.core.checkpoint.folders import OPTIMIZER_PREFIX
from scaling.core.checkpoint.manifest import TensorEntry
from scaling.core.checkpoint.pieces import LazyTensor, save_pieces
from scaling.core.checkpoint.search import StoredCheckpoint
from scaling.core.errors import CheckpointError

PIECE_BYTES: Final = 256 * 2**20
"""How many bytes of a tensor are in memory at a time."""

COMPARED_ELEMENTS: Final = 2 * 2**20
"""How many elements are compared at a time: in float64, with intermediate results, about 100 bytes each."""


@final
class CheckpointReader:
    """A reader of a verified checkpoint's tensors. It keeps the last file open; close it, or use it in a `with`."""

    def __init__(self, stored: StoredCheckpoint) -> None:
        self.stored = stored
        self._open: dict[str, TensorFile] = {}
        self._keeps_all = False
        self._scratch = Scratch()

    def __enter__(self) -> CheckpointReader:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def read(self, name: str, box: Box | None = None) -> Tensor:
        """Return a stored tensor, or a box of it, on the CPU in its stored type."""
        entry = self._entry(name)
        box = whole(entry.shape) if box is None else box
        found = torch.empty(box.shape, dtype=TORCH_TYPES[entry.dtype])
        self.read_into(name, box, found)
        return found

    def read_into(self, name: str, box: Box, into: Tensor) -> None:
        """Copy a box of a stored tensor into a tensor of the box's shape, converted to its type."""
        for part in self._entry(name).parts:
            common = part.box.intersect(box)
            if common is not None:
                file = self._file(part.file)
                file.read_part(part, common.inside(part.box), into[common.slices(box)])

    def open_all(self) -> None:
        """Open the files of all tensors but optimizer states, so that they can be read even after they are removed."""
        self._keeps_all = True
        for name in self.stored.manifest.without(OPTIMIZER_PREFIX).files:
            self._file(name)

    def close(self) -> None:
        """Close the open files."""
        for file in self._open.values():
            file.close()
        self._open.clear()

    def _entry(self, name: str) -> TensorEntry:
        entry = self.stored.manifest.tensors.get(name)
        if entry is None:
            raise CheckpointError(f"{self.stored.path} does not hold a tensor named {name!r}")
        return entry

    def _file(self, name: str) -> TensorFile:
        if name not in self._open:
            if not self._keeps_all:
                self.close()
            entry = self.stored.manifest.files[name]
            self._open[name] = TensorFile(self.stored.path, name, entry, scratch=self._scratch)
        return self._open[name]


@dataclass(frozen=True)
class Difference:
    """How one tensor differs between two checkpoints; without `note` the values were compared."""

    name: str
    note: str = ""
    """Why the values could not be compared, or that the types differ."""
    elements: int = 0
    """How many elements differ (NaN equals NaN)."""
    largest_absolute: float = 0.0
    largest_relative: float = 0.0

    @property
    def is_equal(self) -> bool:
        """Return whether shape, type and all values are the same."""
        return not self.note and not self.elements


def differences(a: StoredCheckpoint, b: StoredCheckpoint) -> Iterator[Difference]:
    """Compare two checkpoints tensor by tensor, in the order of names; equal tensors are yielded as well."""
    first, second = a.manifest.tensors, b.manifest.tensors
    with CheckpointReader(a) as from_a, CheckpointReader(b) as from_b:
        for name in sorted({*first, *second}):
            if name not in second:
                yield Difference(name, f"only in the first, {list(first[name].shape)}")
            elif name not in first:
                yield Difference(name, f"only in the second, {list(second[name].shape)}")
            elif first[name].shape != second[name].shape:
                yield Difference(name, f"{list(first[name].shape)} and {list(second[name].shape)}")
            elif _digests(first[name]) == _digests(second[name]):
                yield Difference(name)
            else:
                yield _compare(name, from_a, from_b)


def cast(source: StoredCheckpoint, save_dir: Path, dtype: torch.dtype) -> Path:
    """Write the model's tensors as a checkpoint of the same step, floating-point ones in `dtype`; return its folder.

    Optimizer states are left out: they would not fit the rounded weights.
    """
    with CheckpointReader(source) as reader:
        tensors = [
            _cast(reader, name, entry, dtype)
            for name, entry in source.manifest.tensors.items()
            if not name.startswith(OPTIMIZER_PREFIX)
        ]
        information = {**source.manifest.information, "cast_from": str(source.path)}
        return save_pieces(save_dir, source.step, tensors, scalars=source.manifest.scalars, information=information)


def _cast(reader: CheckpointReader, name: str, entry: TensorEntry, dtype: torch.dtype) -> LazyTensor:
    stored = TORCH_TYPES[entry.dtype]
    target = dtype if stored.is_floating_point else stored
    boxes = [box for part in entry.parts for box in part.box.cut(max(1, PIECE_BYTES // stored.itemsize))]
    return LazyTensor(name, entry.shape, target, [(box, partial(_read_as, reader, name, box, target)) for box in boxes])


def _read_as(reader: CheckpointReader, name: str, box: Box, dtype: torch.dtype) -> Tensor:
    return reader.read(name, box).to(dtype)


def _digests(entry: TensorEntry) -> tuple[str, frozenset[tuple[Box, str, int | None]]]:
    return entry.dtype, frozenset((part.box, part.sha256, part.start) for part in entry.parts)


def _compare(name: str, from_a: CheckpointReader, from_b: CheckpointReader) -> Difference:
    first, second = from_a.stored.manifest.tensors[name], from_b.stored.manifest.tensors[name]
    note = "" if first.dtype == second.dtype else f"{first.dtype} in the first, {second.dtype} in the second"
    elements, absolute, relative = 0, 0.0, 0.0
    for box in whole(first.shape).cut(COMPARED_ELEMENTS):
        a, b = (_comparable(reader.read(name, box)) for reader in (from_a, from_b))
        count, farthest, proportion = _distances(a, b)
        elements, absolute, relative = elements + count, max(absolute, farthest), max(relative, proportion)
    return Difference(name, note, elements, absolute, relative)


def _distances(a: Tensor, b: Tensor) -> tuple[int, float, float]:
    """Return how many elements differ, and their largest absolute and relative distance."""
    distance = (a - b).abs_()
    if not distance.sum().isfinite():  # NaN or infinity somewhere: only the elements that differ count
        unequal = (a != b) & ~(a.isnan() & b.isnan())
        if not unequal.any():
            return 0, 0.0, 0.0
        a, b = a[unequal], b[unequal]
        distance = (a - b).abs_().nan_to_num_(nan=float("inf"), posinf=float("inf"))
    larger = torch.maximum(a.abs(), b.abs())
    count, farthest = int(distance.count_nonzero()), float(distance.max())
    distance.div_(larger.clamp_min_(torch.finfo(larger.dtype).tiny))
    return count, farthest, float(distance.nan_to_num_(nan=float("inf"), posinf=float("inf")).max())


def _comparable(tensor: Tensor) -> Tensor:
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)
