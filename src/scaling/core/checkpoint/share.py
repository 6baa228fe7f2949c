"""One rank's share of a checkpoint: cut its tensors into pieces, write them into files, and join the shares' tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from scaling.core import faults
from scaling.core.boxes import Box, GlobalTensor, whole
from scaling.core.checkpoint.files import TYPE_NAMES, Piece, constant, write_file
from scaling.core.checkpoint.folders import OPTIMIZER_PREFIX
from scaling.core.checkpoint.header import placed
from scaling.core.checkpoint.manifest import (
    MAX_NAME_LENGTH,
    FileEntry,
    Part,
    TensorEntry,
    files_from_json,
    tensors_from_json,
    tensors_to_json,
)
from scaling.core.errors import CheckpointError

PACKED_BELOW: Final = 16 * 2**10
"""Pieces of fewer bytes are packed, where packing is asked for."""

_PACK: Final = "packed:"


@dataclass(frozen=True)
class Share:
    """The pieces that one rank writes, and the shapes of all tensors that it knows of, including those of others."""

    pieces: Sequence[Piece] = ()
    mentioned: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    packed: bool = False
    """Whether small pieces are stored together. Stored alone, each takes about 450 bytes besides its data, and damage
    can be traced to the single piece."""


@dataclass(frozen=True)
class _Stored:
    """The content stored under one key: a piece, or a pack of several."""

    piece: Piece
    members: Sequence[Piece]
    """The pieces of a pack, in order; empty for a piece stored alone."""

    def parts(self, file: str, sha256: str) -> Iterator[tuple[Piece, Part]]:
        """Yield the pieces, each with its part for the manifest."""
        if not self.members:
            yield self.piece, Part(self.piece.box, file, self.piece.key, sha256)
        start = 0
        for member in self.members:
            yield member, Part(member.box, file, self.piece.key, sha256, start)
            start += member.box.size


def plan_share(tensors: Iterable[GlobalTensor], max_file_bytes: int, *, packed: bool = False) -> Share:
    """Cut this rank's owned tensors into pieces that fit into a file, in the order in which they will be written."""
    pieces: list[Piece] = []
    mentioned: dict[str, tuple[int, ...]] = {}
    for tensor in tensors:
        shape = tuple(tensor.shape)
        if not 0 < len(tensor.key) <= MAX_NAME_LENGTH or not tensor.key.isprintable() or tensor.key == "__metadata__":
            raise CheckpointError(f"{tensor.key[:100]!r} cannot be the name of a tensor in a checkpoint")
        if mentioned.setdefault(tensor.key, shape) != shape:
            raise CheckpointError(f"{tensor.key} is given as {list(mentioned[tensor.key])} and as {list(shape)}")
        if tensor.owned:
            pieces += [
                piece for box, view in tensor.parts for piece in _cut(tensor.key, shape, box, view, max_file_bytes)
            ]
    return Share(sorted(pieces, key=lambda piece: (_group(piece), placed(piece.dtype, piece.bytes))), mentioned, packed)


def write_share(folder: Path, rank: int, share: Share, max_file_bytes: int) -> dict[str, Any]:
    """Write the pieces into files of at most `max_file_bytes` and return their tables as JSON."""
    planned = {
        name: _packed(pieces) if share.packed else [_Stored(piece, ()) for piece in pieces]
        for name, pieces in _files(rank, share.pieces, max_file_bytes).items()
    }
    everything = [stored.piece for each in planned.values() for stored in each]
    middle = everything[len(everything) // 2] if everything else None

    def before(piece: Piece) -> None:
        if piece is middle:
            faults.point("save.mid_data", rank=rank)

    faults.point("save.before_data", rank=rank)
    if middle is None:
        faults.point("save.mid_data", rank=rank)
    files: dict[str, FileEntry] = {}
    parts: dict[str, list[Part]] = {}
    entries: dict[str, TensorEntry] = {}
    for name, contents in planned.items():
        files[name], digests = write_file(folder / name, [stored.piece for stored in contents], before=before)
        for stored, digest in zip(contents, digests, strict=True):
            for piece, part in stored.parts(name, digest):
                parts.setdefault(piece.tensor, []).append(part)
                entries[piece.tensor] = TensorEntry(piece.shape, piece.dtype, tuple(parts[piece.tensor]))
    packs, rows = tensors_to_json(entries)
    faults.point("save.after_data", rank=rank)
    return {
        "files": {name: vars(entry) for name, entry in files.items()},
        "packs": packs,
        "tensors": rows,
        "mentioned": {name: shape for name, shape in share.mentioned.items() if name not in entries},
    }


def join_shares(reports: Sequence[Mapping[str, Any]]) -> tuple[dict[str, FileEntry], dict[str, TensorEntry]]:
    """Join the reports of what the ranks have written; a disagreement on a tensor is a `CheckpointError`.

    `Manifest.problems` checks whether the parts cover each tensor exactly once.
    """
    files: dict[str, FileEntry] = {}
    tensors: dict[str, TensorEntry] = {}
    problems: list[str] = []
    for rank, report in enumerate(reports):
        files |= files_from_json(report["files"])
        for name, entry in tensors_from_json(report["tensors"], report["packs"]).items():
            other = tensors.get(name, TensorEntry(entry.shape, entry.dtype, ()))
            if (entry.shape, entry.dtype) != (other.shape, other.dtype):
                problems.append(
                    f"{name} is {entry.dtype} {list(entry.shape)} on rank {rank} "
                    f"but {other.dtype} {list(other.shape)} on a lower one"
                )
            tensors[name] = TensorEntry(entry.shape, entry.dtype, other.parts + entry.parts)
    for rank, report in enumerate(reports):
        for name, shape in report["mentioned"].items():
            if name not in tensors and whole(shape).size:
                problems.append(f"{name} {list(shape)} is on rank {rank}, but no rank owns it, so none wrote it")
            elif name in tensors and tuple(shape) != tensors[name].shape:
                problems.append(f"{name} is {list(shape)} on rank {rank} but {list(tensors[name].shape)} on its owner")
    if problems:
        raise CheckpointError("the ranks do not agree on what to save: " + "; ".join(dict.fromkeys(problems)))
    return files, dict(sorted(tensors.items()))


def _cut(key: str, shape: tuple[int, ...], box: Box, view: Tensor, max_file_bytes: int) -> Iterable[Piece]:
    if tuple(view.shape) != box.shape:
        raise CheckpointError(f"{key}: the box {box} comes with a tensor of shape {list(view.shape)}")
    if len(box.shape) != len(shape) or (box.size and not box.lies_in(shape)):
        raise CheckpointError(f"{key}: the box {box} is not within the tensor's shape {list(shape)}")
    if view.dtype not in TYPE_NAMES:
        raise CheckpointError(f"{key}: tensors of type {view.dtype} cannot be stored")
    if not box.size:
        return
    for small in box.cut(max(1, max_file_bytes // view.dtype.itemsize)):
        yield Piece(key, shape, small, TYPE_NAMES[view.dtype], constant(view[small.slices(box)]))


def _packed(pieces: Sequence[Piece]) -> list[_Stored]:
    """Join the small pieces of a file into one pack for each type, and leave the others as they are."""
    small: dict[str, list[Piece]] = {}
    found = []
    for piece in pieces:
        if piece.bytes < PACKED_BELOW:
            small.setdefault(piece.dtype, []).append(piece)
        else:
            found.append(_Stored(piece, ()))
    for dtype, members in small.items():
        shape = (sum(member.box.size for member in members),)
        pack = Piece(f"{_PACK}{dtype}", shape, whole(shape), dtype, partial(_joined, members))
        found.append(_Stored(pack, members))
    return sorted(found, key=lambda stored: placed(stored.piece.dtype, stored.piece.bytes))


def _joined(pieces: Sequence[Piece]) -> Tensor:
    return torch.cat([piece.load().detach().to("cpu").reshape(-1) for piece in pieces])


def _group(piece: Piece) -> str:
    return "optimizer" if piece.tensor.startswith(OPTIMIZER_PREFIX) else "model"


def _files(rank: int, pieces: Sequence[Piece], max_file_bytes: int) -> dict[str, list[Piece]]:
    """Distribute the pieces over files, in order: a file holds one group, at least one piece, and is bounded."""
    files: dict[str, list[Piece]] = {}
    numbers = {"model": -1, "optimizer": -1}
    name, group, size = "", "", 0
    for piece in pieces:
        if _group(piece) != group or size + piece.bytes > max_file_bytes:
            group, size = _group(piece), 0
            numbers[group] += 1
            name = f"rank_{rank:05d}_{group}_{numbers[group]:03d}.safetensors"
        files.setdefault(name, []).append(piece)
        size += piece.bytes
    return files
