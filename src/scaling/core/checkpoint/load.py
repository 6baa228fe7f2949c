"""Match stored tensors with wanted ones by name and shape, and copy the common boxes."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from scaling.core.boxes import Box, Former, GlobalTensor, whole
from scaling.core.checkpoint.files import TORCH_TYPES, Scratch, TensorFile
from scaling.core.checkpoint.folders import OPTIMIZER_PREFIX
from scaling.core.checkpoint.manifest import Manifest, Part, TensorEntry
from scaling.core.errors import ConfigError

READERS: Final = 4
"""Threads that read a file into memory: one thread copies more slowly than the page cache or a good disk delivers."""

_SLOT: Final = re.compile(re.escape(OPTIMIZER_PREFIX) + r"[^.]+\.")
_NAMED: Final = 10
"""How many differences of each kind are named."""


@dataclass(frozen=True)
class Rules:
    """The accepted differences between the checkpoint and the model: regular expressions, searched in names.

    A pattern that covers a parameter covers its optimizer tensors too: `^layers\\.0\\.` also covers
    `optimizer.exp_avg.layers.0.weight`.
    """

    allowed_missing: Sequence[str] = ()
    """Wanted tensors that need not be stored: they keep the values they have."""
    allowed_unexpected: Sequence[str] = ()
    """Stored tensors that the model need not have."""
    ignore: Sequence[str] = ()
    """Stored tensors to treat as if they were not there (they are then missing, and that has to be allowed)."""
    optional: Collection[str] | None = None
    """Names of wanted tensors that need not be stored, such as those that a fine-tuning adds to its base. If given,
    `ignore` applies to these alone: frozen tensors have no values but the stored ones."""
    grown: Sequence[str] = ()
    """Wanted tensors that may be longer in the first dimension than stored: additional rows keep their values."""
    masters: str | None = None
    """Prefix of the names of the optimizer's wider copies of weights (None: there are none). A weight that is wanted in
    a wider type than it is stored in is read from its copy; a copy that is not stored is read from its weight."""

    def __post_init__(self) -> None:
        for pattern in (*self.allowed_missing, *self.allowed_unexpected, *self.ignore, *self.grown):
            try:
                re.compile(pattern)
            except re.error as error:
                raise ConfigError(f"{pattern!r} is not a regular expression for names of tensors: {error}") from error


@dataclass(frozen=True)
class Read:
    """One box to copy from a stored part into memory."""

    part: Part
    box: Box
    """In the coordinates of the part."""
    into: Tensor


@dataclass(frozen=True)
class Match:
    """The reads of this rank, and the differences that it sees."""

    reads: Sequence[Read] = ()
    missing: Sequence[tuple[str, str]] = ()
    """(name, shape) of wanted tensors that are not stored."""
    absent: Sequence[str] = ()
    """Names of optional tensors that are not stored."""
    mismatched: Sequence[tuple[str, str]] = ()
    """(name, the two shapes or types)."""
    found: frozenset[str] = frozenset()
    """Stored names of the wanted tensors."""
    problem: str | None = None
    """Why this rank could not compare the tensors at all."""


def match(manifest: Manifest, tensors: Iterable[GlobalTensor], rules: Rules) -> Match:
    """Compare this rank's tensors with the stored ones and plan the copies. Pure."""
    unignored = {name: entry for name, entry in manifest.tensors.items() if not covered(name, rules.ignore)}
    reads: list[Read] = []
    missing: list[tuple[str, str]] = []
    absent: list[str] = []
    mismatched: list[tuple[str, str]] = []
    found = set()
    for tensor in tensors:
        optional = rules.optional is not None and tensor.key in rules.optional
        stored = unignored if optional or rules.optional is None else manifest.tensors
        source = _source(tensor, stored, rules.masters)
        entry = stored.get(source)
        if entry is None and tensor.former is not None:
            formerly = _as_formerly(tensor, tensor.former)
            other = _source(formerly, stored, rules.masters)
            if other in stored or covered(formerly.key, rules.allowed_missing):
                tensor, source, entry = formerly, other, stored.get(other)
        if entry is None:
            if optional:
                absent.append(tensor.key)
            elif 0 not in tensor.shape:
                missing.append((tensor.key, str(list(tensor.shape))))
            continue
        found |= {source, tensor.key}
        longer = covered(tensor.key, rules.grown) and _is_longer(tensor.shape, entry.shape)
        if entry.shape != tuple(tensor.shape) and not longer:
            mismatched.append((tensor.key, f"stored {list(entry.shape)}, wanted {list(tensor.shape)}"))
        else:
            for box, view in _clipped(tensor.parts, entry.shape) if longer else tensor.parts:
                misfits = [(tensor.key, what) for what in _misfits(entry, box, view)]
                mismatched += misfits
                reads += () if misfits else _reads(entry.parts, box, view)
    return Match(reads, missing, absent, mismatched, frozenset(found))


def execute(folder: Path, manifest: Manifest, reads: Sequence[Read]) -> None:
    """Copy the planned boxes, file by file in the order of the data.

    Threads read the boxes that go into memory as they are stored. Boxes that are converted, strided or on a device are
    copied by the calling thread alone, because other threads do not share its streams and autograd modes.
    """
    by_file: dict[str, list[Read]] = defaultdict(list)
    for read in reads:
        by_file[read.part.file].append(read)
    scratch = Scratch()
    with torch.no_grad():
        for name, planned in sorted(by_file.items()):
            with TensorFile(folder, name, manifest.files[name], scratch=scratch) as file:
                _read_all(file, sorted(planned, key=lambda read: file.slot_of(read.part).start))


def _read_all(file: TensorFile, reads: Sequence[Read]) -> None:
    pool = ThreadPoolExecutor(READERS, thread_name_prefix="read")
    try:
        filled = [file.fills(read.part, read.box, read.into) for read in reads]
        started = [
            pool.submit(file.read_part, read.part, read.box, read.into)
            for read, direct in zip(reads, filled, strict=True)
            if direct
        ]
        for read, direct in zip(reads, filled, strict=True):
            if not direct:
                file.read_part(read.part, read.box, read.into)
        for future in started:
            future.result()
    finally:
        pool.shutdown(cancel_futures=True)  # no thread reads any more when the file is closed


def report_of(matched: Match, manifest: Manifest) -> dict[str, Any]:
    """Return the differences one rank sees as JSON, with one bit for each stored name: whether the rank wants it."""
    bits = sum(1 << index for index, name in enumerate(manifest.tensors) if name in matched.found)
    return {
        "missing": matched.missing,
        "absent": matched.absent,
        "mismatched": matched.mismatched,
        "found": f"{bits:x}",
        "problem": matched.problem,
    }


def join_reports(reports: Sequence[dict[str, Any]], manifest: Manifest, rules: Rules) -> dict[str, Any]:
    """Join the reports of all ranks: every list sorted, without duplicates, split into accepted and refused."""
    bits = 0
    for report in reports:
        bits |= int(report["found"], 16)
    unexpected = [
        (name, str(list(entry.shape)))
        for index, (name, entry) in enumerate(manifest.tensors.items())
        if not bits >> index & 1
    ]
    missing = sorted({(name, shape) for report in reports for name, shape in report["missing"]})
    fine = (*rules.allowed_unexpected, *rules.ignore)
    return {
        "problems": [(f"rank {rank}:", row["problem"]) for rank, row in enumerate(reports) if row["problem"]],
        "missing": [row for row in missing if not covered(row[0], rules.allowed_missing)],
        "unexpected": [row for row in unexpected if not covered(row[0], fine)],
        "mismatched": sorted({(name, what) for report in reports for name, what in report["mismatched"]}),
        "absent": sorted({name for report in reports for name in report["absent"]}),
        "accepted_missing": [name for name, _ in missing if covered(name, rules.allowed_missing)],
        "accepted_unexpected": [name for name, _ in unexpected if covered(name, fine)],
    }


def describe(joined: dict[str, Any], path: Path, manifest: Manifest) -> str | None:
    """Return the message about all refused differences, the first of each kind by name; None where there are none."""
    titles = {
        "problems": "not comparable",
        "missing": "missing in the checkpoint (trainer.allowed_missing_keys_in_checkpoint)",
        "unexpected": "in the checkpoint but not in the model (trainer.allowed_unexpected_keys_in_checkpoint)",
        "mismatched": "of another shape or type (trainer.ignore_keys_in_checkpoint, and allow them to be missing)",
    }
    without_optimizer = not manifest.holds(OPTIMIZER_PREFIX)
    lines = []
    for kind, title in titles.items():
        rows = [row for row in joined[kind] if not (without_optimizer and row[0].startswith(OPTIMIZER_PREFIX))]
        if rows:
            lines.append(f"  {len(rows)} {title}:")
            lines += [f"    {name} {what}" for name, what in rows[:_NAMED]]
            if len(rows) > _NAMED:
                lines.append(f"    and {len(rows) - _NAMED} more")
    if without_optimizer and any(name.startswith(OPTIMIZER_PREFIX) for name, _ in joined["missing"]):
        why = (
            "Retention has removed its optimizer states"
            if OPTIMIZER_PREFIX in manifest.removed
            else "It holds no optimizer states"
        )
        lines.append(f"  {why}; load the weights alone: set trainer.load_optimizer_states to false.")
    if not lines:
        return None
    return "\n".join([f"the checkpoint {path} does not fit the model:", *lines])


def covered(name: str, patterns: Sequence[str]) -> bool:
    """Return whether one of the patterns is found in `name`, or in the name of the parameter that it belongs to."""
    slot = _SLOT.match(name)
    names = (name,) if slot is None else (name, name[slot.end() :])
    return any(re.search(pattern, known) for pattern in patterns for known in names)


def _source(tensor: GlobalTensor, stored: Mapping[str, TensorEntry], masters: str | None) -> str:
    """Return the name of the stored tensor from which to read a wanted one."""
    key = tensor.key
    if masters is None:
        return key
    if key.startswith(masters):
        return key if key in stored else key.removeprefix(masters)
    entry, wide = stored.get(key), stored.get(masters + key)
    if entry is None or wide is None or wide.shape != entry.shape:
        return key
    width = TORCH_TYPES[entry.dtype].itemsize
    return masters + key if any(view.dtype.itemsize > width for _, view in tensor.parts) else key


def _as_formerly(tensor: GlobalTensor, former: Former) -> GlobalTensor:
    """Return the same memory as part of the tensor that holds these rows in an older format."""
    parts = [(there, view[here.slices(box)]) for box, view in tensor.parts for here, there in former.pieces(box)]
    return GlobalTensor(former.key, former.shape, parts, tensor.owned)


def _is_longer(shape: Sequence[int], stored: Sequence[int]) -> bool:
    return len(shape) == len(stored) > 0 and shape[0] > stored[0] and tuple(shape[1:]) == tuple(stored[1:])


def _clipped(parts: Iterable[tuple[Box, Tensor]], shape: Sequence[int]) -> Iterable[tuple[Box, Tensor]]:
    """Yield the parts, clipped to a tensor of this shape."""
    for box, view in parts:
        common = box.intersect(whole(shape))
        if common is not None:
            yield common, view[common.slices(box)]


def _reads(parts: Sequence[Part], box: Box, view: Tensor) -> Iterable[Read]:
    for part in parts:
        common = part.box.intersect(box)
        if common is not None:
            yield Read(part, common.inside(part.box), view[common.slices(box)])


def _misfits(entry: TensorEntry, box: Box, view: Tensor) -> Iterable[str]:
    """Yield why a stored tensor cannot be copied into a view. Only floating-point types convert."""
    dtype = TORCH_TYPES[entry.dtype]
    if dtype != view.dtype and not (dtype.is_floating_point and view.dtype.is_floating_point):
        yield f"stored as {entry.dtype}, wanted as {view.dtype}"
    if tuple(view.shape) != box.shape:
        yield f"the box {box} is wanted in memory of shape {list(view.shape)}"
    if len(box.shape) != len(entry.shape) or (box.size and not box.lies_in(entry.shape)):
        yield f"the box {box} reaches beyond the stored {list(entry.shape)}: those elements are nowhere"
