"""The manifest of a checkpoint: what is stored where, with a digest for every byte, read without trust."""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from scaling.core.boxes import Box, first_overlap, follow_each_other, uncovered, whole
from scaling.core.checkpoint.header import ITEM_BYTES, tensor_bytes
from scaling.core.config.plain_words import first_of
from scaling.core.errors import CheckpointError
from scaling.core.storage.json_values import Json, is_count, unique_keys

FILE_NAME: Final = "manifest.json"
FORMAT: Final = "scaling-checkpoint"
VERSION: Final = 3
"""Since 2, fused weights are stored as the tensors that they consist of; since 3, small parts may be packed."""
_WITHOUT_PACKS: Final = 2
READABLE: Final = (1, 2, 3)

OPTIMIZER_PREFIX: Final = "optimizer."
"""Tensors whose name starts with this are kept in files of their own, so that retention can drop them."""

MAX_BYTES: Final = 256 * 2**20
MAX_FILES: Final = 100_000
MAX_PARTS: Final = 4_000_000
MAX_DIMENSIONS: Final = 16
MAX_NAME_LENGTH: Final = 1000

_SAFE_FILE_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,200}\.safetensors")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_PREFIX: Final = b'{\n"sha256": "'
_SHOWN_MEMBERS: Final = 3
_BLANK: Final = b"0" * 64


@dataclass(frozen=True)
class Part:
    """A box of a tensor, stored under `key` in `file`; `sha256` is the digest of the bytes stored there."""

    box: Box
    file: str
    key: str
    sha256: str
    start: int | None = None
    """Where the part begins in a pack (a vector of many small parts), in elements. None: it is stored alone."""


@dataclass(frozen=True)
class TensorEntry:
    """One global tensor; `dtype` is the safetensors name of its data type."""

    shape: tuple[int, ...]
    dtype: str
    parts: tuple[Part, ...]

    @property
    def bytes(self) -> int:
        """Return the number of bytes of the whole tensor."""
        return tensor_bytes(self.dtype, self.shape)


@dataclass(frozen=True)
class FileEntry:
    """One data file. Every byte after the header belongs to exactly one part, so digests cover the whole file."""

    bytes: int
    header_sha256: str


@dataclass(frozen=True)
class Manifest:
    """The table of contents of one checkpoint."""

    step: int
    files: Mapping[str, FileEntry]
    tensors: Mapping[str, TensorEntry]
    scalars: Mapping[str, Json] = field(default_factory=dict)
    """Everything that is not a tensor: trainer state, optimizer scalars, data position, fingerprints, configuration."""
    information: Mapping[str, Json] = field(default_factory=dict)
    """For people: when, with which versions and in which layout it was written. Loading never depends on this."""
    removed: tuple[str, ...] = ()
    """Prefixes of the tensors that retention has removed since."""
    digest: str = field(default="", compare=False)
    """The digest of the file that was read."""

    def encode(self) -> bytes:
        """Return the file's bytes. Numbers that JSON cannot express (NaN, infinity) are a `CheckpointError`."""
        packs, rows = tensors_to_json(self.tensors)
        version = VERSION if packs else _WITHOUT_PACKS
        head = {"format": FORMAT, "version": version, "step": self.step, "removed": list(self.removed)}
        lines = [f"{_json(key)}: {_json(value)}" for key, value in head.items()]
        lines.append(f'"information": {_object(self.information)}')
        lines.append(f'"scalars": {_object(self.scalars)}')
        lines.append(f'"files": {_object({name: vars(entry) for name, entry in self.files.items()})}')
        if packs:
            lines.append('"packs": [\n ' + ",\n ".join(map(_json, packs)) + "\n]")
        lines.append(f'"tensors": {_object(rows)}')
        rest = b'",\n' + ",\n".join(lines).encode() + b"\n}\n"
        return _PREFIX + _digest(rest) + rest

    @classmethod
    def decode(cls, data: bytes) -> Manifest:
        """Read and check a manifest; a byte that differs from the written one is a `CheckpointError`."""
        start = len(_PREFIX)
        if not data.startswith(_PREFIX) or _digest(data[start + 64 :]) != data[start : start + 64]:
            raise CheckpointError(f"{FILE_NAME} is damaged: its contents do not match its own digest")
        try:
            found = json.loads(data.decode(), object_pairs_hook=unique_keys, parse_constant=_no_constant)
            if found["format"] != FORMAT or found["version"] not in READABLE:
                raise CheckpointError(
                    f"{FILE_NAME} is of format {found['format']!r} version {found['version']!r}; this library reads "
                    f"{FORMAT!r} versions {READABLE[0]} to {VERSION}"
                )
            manifest = cls(
                step=_count(found["step"]),
                files=files_from_json(found["files"]),
                tensors=tensors_from_json(found["tensors"], found.get("packs", ())),
                scalars=_mapping(found["scalars"]),
                information=_mapping(found["information"]),
                removed=tuple(_text(prefix) for prefix in found["removed"]),
                digest=_sha256(found["sha256"]),
            )
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise CheckpointError(f"{FILE_NAME} cannot be read ({type(error).__name__}: {error})") from error
        if problems := manifest.problems():
            raise CheckpointError(f"{FILE_NAME} contradicts itself: " + "; ".join(problems[:10]))
        return manifest

    def problems(self) -> list[str]:
        """Return why the parts are not an exact cover of every tensor and every file; empty where they are."""
        found: list[str] = []
        keys: dict[str, set[str]] = {name: set() for name in self.files}
        packs: set[tuple[str, str]] = set()
        for name, entry in self.tensors.items():
            found += _cover_problems(name, entry)
            for part in entry.parts:
                if part.file not in keys:
                    found.append(f"{name} is said to be in {part.file}, which the list of files does not have")
                elif part.start is not None and (part.file, part.key) in packs:
                    continue
                elif part.key in keys[part.file]:
                    found.append(f"{part.file} is said to hold {part.key} twice")
                else:
                    keys[part.file].add(part.key)
                    packs |= set() if part.start is None else {(part.file, part.key)}
        for place, members in self._members_of_packs().items():
            found += _pack_problems(place, members)
        return found + [f"{name} holds no tensor" for name, stored in keys.items() if not stored]

    def keys_of_files(self) -> dict[str, dict[str, tuple[str, TensorEntry, Part]]]:
        """Return, for every file, the (tensor name, tensor, part) of each of its keys.

        A pack counts as one tensor, which is named after those whose parts are in it.
        """
        table: dict[str, dict[str, tuple[str, TensorEntry, Part]]] = defaultdict(dict)
        for name, entry in self.tensors.items():
            for part in entry.parts:
                if part.start is None:
                    table[part.file][part.key] = (name, entry, part)
        for (file, key), members in self._members_of_packs().items():
            names = first_of(list(dict.fromkeys(name for name, _, _ in members)), _SHOWN_MEMBERS)
            box = whole((sum(part.box.size for _, _, part in members),))
            part = Part(box, file, key, members[0][2].sha256)
            table[file][key] = (f"one of {names},", TensorEntry(box.shape, members[0][1], (part,)), part)
        return table

    def _members_of_packs(self) -> dict[tuple[str, str], list[tuple[str, str, Part]]]:
        """Return the (tensor name, type, part) of all members of every pack, in their order, by its (file, key)."""
        packs: dict[tuple[str, str], list[tuple[str, str, Part]]] = defaultdict(list)
        for name, entry in self.tensors.items():
            for part in entry.parts:
                if part.start is not None:
                    packs[part.file, part.key].append((name, entry.dtype, part))
        return {place: sorted(members, key=lambda one: one[2].start or 0) for place, members in packs.items()}

    def without(self, prefix: str) -> Manifest:
        """Return the manifest without tensors whose name starts with `prefix` and files that held only those."""
        tensors = {name: entry for name, entry in self.tensors.items() if not name.startswith(prefix)}
        used = {part.file for entry in tensors.values() for part in entry.parts}
        files = {name: entry for name, entry in self.files.items() if name in used}
        return replace(self, files=files, tensors=tensors, removed=tuple(sorted({*self.removed, prefix})))

    def holds(self, prefix: str) -> bool:
        """Return whether there is a tensor whose name starts with `prefix`."""
        return any(name.startswith(prefix) for name in self.tensors)

    @property
    def weights_digest(self) -> str:
        """Return a digest of the weights: names, shapes, types, and the place and bytes of every stored part.

        A copy of the checkpoint has the same digest, even without the optimizer's states; the same weights saved in
        another layout have a different one.
        """
        digest = hashlib.sha256()
        for name, entry in sorted(self.tensors.items()):
            if not name.startswith(OPTIMIZER_PREFIX):
                parts = sorted((part.box.offset, part.box.shape, part.sha256, part.start) for part in entry.parts)
                digest.update(f"{_json([name, entry.shape, entry.dtype, parts])}\n".encode())
        return digest.hexdigest()

    @property
    def bytes(self) -> int:
        """Return the size of all data files."""
        return sum(entry.bytes for entry in self.files.values())


def tensors_to_json(tensors: Mapping[str, TensorEntry]) -> tuple[list[dict[str, str]], dict[str, dict[str, Any]]]:
    """Return the JSON forms of the table of packs and of the table of tensors, which refers to packs by number.

    Rows of packed parts are short, because there are many of them with few bytes each.
    """
    packs: dict[tuple[str, str, str], int] = {}

    def row(entry: TensorEntry, part: Part) -> dict[str, Any]:
        box = {"offset": part.box.offset, "shape": part.box.shape}
        if part.start is None:
            return {**box, "file": part.file, "key": part.key, "sha256": part.sha256}
        number = packs.setdefault((part.file, part.key, part.sha256), len(packs))
        return {**({} if part.box == whole(entry.shape) else box), "pack": number, "start": part.start}

    rows = {
        name: {"shape": entry.shape, "dtype": entry.dtype, "parts": [row(entry, part) for part in entry.parts]}
        for name, entry in tensors.items()
    }
    return [{"file": file, "key": key, "sha256": sha256} for file, key, sha256 in packs], rows


def tensors_from_json(table: Any, packs: Any = ()) -> dict[str, TensorEntry]:
    """Read the table of tensors; a malformed one is a `ValueError` or `CheckpointError`."""
    if not isinstance(packs, (list, tuple)):
        raise ValueError(f"expected a list of packs, found {type(packs).__name__}")
    places = [(_file(pack["file"]), _text(pack["key"]), _sha256(pack["sha256"])) for pack in packs]
    rows = _mapping(table)
    if sum(len(row["parts"]) for row in rows.values()) > MAX_PARTS:
        raise CheckpointError(f"{FILE_NAME} lists more than {MAX_PARTS} parts of tensors")
    return {_text(name): _tensor(row, places) for name, row in rows.items()}


def files_from_json(table: Any) -> dict[str, FileEntry]:
    """Read the table of files; a name that could leave the folder is refused."""
    rows = _mapping(table)
    if len(rows) > MAX_FILES:
        raise CheckpointError(f"{FILE_NAME} lists {len(rows)} files; at most {MAX_FILES} are accepted")
    return {_file(name): FileEntry(_count(row["bytes"]), _sha256(row["header_sha256"])) for name, row in rows.items()}


def json_text(value: Json, what: str) -> str:
    """Return `value` as JSON; a value that cannot be stored is a `CheckpointError` that names `what`."""
    try:
        return json.dumps(value, separators=(",", ":"), allow_nan=False)
    except (ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{what} cannot be stored as JSON: {error}") from error


def _cover_problems(name: str, entry: TensorEntry) -> list[str]:
    for part in entry.parts:
        if part.box.size == 0:
            return [f"{name} {list(entry.shape)} has an empty part {part.box} in {part.file}"]
        if not part.box.lies_in(entry.shape):
            return [f"{name} {list(entry.shape)} has a part {part.box} in {part.file} that is not within it"]
    boxes = [part.box for part in entry.parts]
    if follow_each_other(entry.shape, boxes):
        return []
    target = whole(entry.shape)
    if pair := first_overlap(boxes):
        a, b = (entry.parts[index] for index in pair)
        return [f"{name} {list(entry.shape)} has parts that overlap: {a.box} in {a.file} and {b.box} in {b.file}"]
    if sum(box.size for box in boxes) != target.size:
        gaps = uncovered(target, boxes)
        missing = sum(gap.size for gap in gaps)
        return [f"{name} {list(entry.shape)} has {missing} elements that no part holds, first those at {gaps[0]}"]
    return []


def _pack_problems(place: tuple[str, str], members: list[tuple[str, str, Part]]) -> list[str]:
    """Return why the parts of a pack are not of one type, one directly after another."""
    file, key = place
    if len({(dtype, part.sha256) for _, dtype, part in members}) > 1:
        return [f"{file} is said to hold {key} with several types or digests"]
    position = 0
    for name, _, part in members:
        if part.start != position:
            return [f"{name} is said to be at {part.start} in {key} of {file}, where {position} is next"]
        position += part.box.size
    return []


def _tensor(row: Any, packs: Sequence[tuple[str, str, str]]) -> TensorEntry:
    dtype = _text(row["dtype"])
    if dtype not in ITEM_BYTES:
        raise ValueError(f"unknown data type {dtype!r}")
    shape = _numbers(row["shape"])
    return TensorEntry(shape, dtype, tuple(_part(part, shape, packs) for part in row["parts"]))


def _part(row: Any, shape: tuple[int, ...], packs: Sequence[tuple[str, str, str]]) -> Part:
    if "pack" in row:
        box = Box(_numbers(row["offset"]), _numbers(row["shape"])) if "shape" in row else whole(shape)
        if _count(row["pack"]) >= len(packs):
            raise ValueError(f"there is no pack {row['pack']}")
        file, key, sha256 = packs[row["pack"]]
        return Part(box, file, key, sha256, _count(row["start"]))
    box = Box(_numbers(row["offset"]), _numbers(row["shape"]))
    return Part(box, _file(row["file"]), _text(row["key"]), _sha256(row["sha256"]))


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"expected an object, found {type(value).__name__}")
    return value


def _count(value: Any) -> int:
    if not is_count(value):
        raise ValueError(f"expected a number from 0 to 2**62, found {value!r}")
    return int(value)


def _numbers(value: Any) -> tuple[int, ...]:
    if not isinstance(value, (list, tuple)) or len(value) > MAX_DIMENSIONS:
        raise ValueError(f"expected at most {MAX_DIMENSIONS} numbers, found {value!r}")
    return tuple(map(_count, value))


def _text(value: Any) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= MAX_NAME_LENGTH or not value.isprintable():
        raise ValueError(f"{str(value)[:100]!r} is not a name of 1 to {MAX_NAME_LENGTH} printable characters")
    return value


def _file(value: Any) -> str:
    if not isinstance(value, str) or not _SAFE_FILE_NAME.fullmatch(value):
        raise CheckpointError(
            f"{FILE_NAME} names a file {str(value)[:100]!r}; only plain names such as "
            "rank_00000_model_000.safetensors are accepted"
        )
    return value


def _sha256(value: Any) -> str:
    if not isinstance(value, str) or not _DIGEST.fullmatch(value):
        raise ValueError(f"{str(value)[:100]!r} is not a SHA-256 digest")
    return value


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _digest(rest: bytes) -> bytes:
    state = hashlib.sha256(_PREFIX + _BLANK)
    state.update(rest)
    return state.hexdigest().encode()


def _json(value: Any) -> str:
    return json_text(value, "the manifest")


def _object(table: Mapping[str, Any]) -> str:
    """Return a JSON object with one line per entry, so that people can search and compare manifests."""
    if not table:
        return "{}"
    return "{\n" + ",\n".join(f" {_json(key)}: {_json(value)}" for key, value in table.items()) + "\n}"
