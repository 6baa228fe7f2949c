"""The header of a safetensors file: which named tensor lies where, written and read without torch and without trust."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from types import MappingProxyType
from typing import Any, BinaryIO, Final

from scaling.core.errors import CheckpointError
from scaling.core.storage.json_values import is_count, unique_keys

ITEM_BYTES: Final[Mapping[str, int]] = MappingProxyType(
    {
        **{name: 1 for name in ("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2")},
        **{name: 2 for name in ("U16", "I16", "F16", "BF16")},
        **{name: 4 for name in ("U32", "I32", "F32")},
        **{name: 8 for name in ("U64", "I64", "F64", "C64")},
    }
)
"""Bytes of one element, by the data type's name in the format."""

MAX_HEADER_BYTES: Final = 100_000_000
"""The limit of the safetensors library itself."""

ALIGNMENT: Final = 64
"""Data begins at a multiple of this many bytes, as arrays in memory do."""


@dataclass(frozen=True)
class Slot:
    """One tensor in a file; `start` and `stop` are byte positions in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Header:
    """The header of a file: its bytes as they are, and the tensor of each key, in file order."""

    raw: bytes
    slots: Mapping[str, Slot]


def tensor_bytes(dtype: str, shape: Iterable[int]) -> int:
    """Return the number of bytes of a tensor."""
    return ITEM_BYTES[dtype] * prod(shape)


def placed(dtype: str, size: int) -> tuple[bool, int]:
    """Return the sort key of a tensor by its type and bytes, so that as many tensors as possible begin aligned."""
    return size % ALIGNMENT != 0, -ITEM_BYTES[dtype]


def encode_header(tensors: Iterable[tuple[str, str, tuple[int, ...]]]) -> bytes:
    """Return the first bytes of a file of these tensors (key, dtype, shape), whose data follow in this order."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for key, dtype, shape in tensors:
        stop = position + tensor_bytes(dtype, shape)
        entries[key] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, stop]}
        position = stop
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def read_header(file: BinaryIO, file_bytes: int) -> Header:
    """Read and check the header of a file that is `file_bytes` long.

    Data that the header's tensors do not cover exactly, or any other inconsistency, is a `CheckpointError`.
    """
    file.seek(0)
    length_bytes = file.read(8)
    length = int.from_bytes(length_bytes, "little")
    if len(length_bytes) < 8 or length > min(MAX_HEADER_BYTES, file_bytes - 8):
        raise CheckpointError(f"its header claims {length} bytes in a file of {file_bytes}; not a safetensors file")
    text = file.read(length)
    try:
        entries = json.loads(text.decode(), object_pairs_hook=unique_keys)
        if not isinstance(entries, dict):
            raise CheckpointError("its header is not a JSON object")
        entries.pop("__metadata__", None)
        slots = {str(key): _slot(entry, 8 + length) for key, entry in entries.items()}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"its header cannot be read ({type(error).__name__}: {error})") from error
    ordered = dict(sorted(slots.items(), key=lambda item: (item[1].start, item[1].stop)))
    position = 8 + length
    for key, slot in ordered.items():
        if slot.start != position or slot.stop != position + tensor_bytes(slot.dtype, slot.shape):
            raise CheckpointError(f"its header puts {key!r} at bytes {slot.start} to {slot.stop}, expected {position}")
        position = slot.stop
    if position != file_bytes:
        raise CheckpointError(f"its header describes {position} bytes, the file has {file_bytes}")
    return Header(length_bytes + text, MappingProxyType(ordered))


def _slot(entry: dict[str, Any], data_start: int) -> Slot:
    start, stop = entry["data_offsets"]
    shape = tuple(entry["shape"])
    if not all(map(is_count, (start, stop, *shape))):
        raise ValueError("a shape or an offset is not a number of reasonable size")
    if entry["dtype"] not in ITEM_BYTES:
        raise ValueError(f"unknown data type {entry['dtype']!r}")
    return Slot(entry["dtype"], shape, data_start + start, data_start + stop)
