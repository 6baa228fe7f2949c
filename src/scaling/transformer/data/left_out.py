"""Files in a folder of text that are not read: those that this library writes, and those that it cannot unpack."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from scaling.core import names_metrics

SKIPPED_SUFFIX: Final = ".skipped.jsonl"
"""Suffix of the list of records that `scaling data tokenize` has skipped."""

_SKIPPED_KEYS: Final = {"path", "line", "offset", "reason"}
_OTHER_COMPRESSIONS: Final = (".bz2", ".xz", ".lzma", ".lz4", ".br", ".z", ".zip", ".7z", ".rar")
_LONGEST_LINE: Final = 1 << 20


@dataclass(frozen=True)
class LeftOut:
    """A file in a folder that is not read as text."""

    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def own_file(path: Path) -> LeftOut | None:
    """Return why a file is left out, if this library has written it beside the text; None where it is text.

    The name alone does not decide: the first line of a list of skipped records, or of metrics, is checked too.

    Raises:
        OSError: The file cannot be read.
    """
    name = path.name.lower()
    if name.endswith(SKIPPED_SUFFIX) and _first_line_is(path, lambda record: record.keys() == _SKIPPED_KEYS):
        return LeftOut(path, "a list of skipped records, written by `scaling data tokenize`")
    if names_metrics(path) and _first_line_is(path, _are_metrics):
        return LeftOut(path, "metrics, written by a training")
    return None


def packed_file(path: Path, suffixes: tuple[str, ...]) -> LeftOut | None:
    """Return why a file is left out, if its name without the suffix of a compression would end in one of `suffixes`."""
    name = path.name.lower()
    for packed in _OTHER_COMPRESSIONS:
        if name.endswith(packed) and name.removesuffix(packed).endswith(suffixes):
            return LeftOut(path, f"{packed} is not read; unpack it, or pack it with gzip or Zstandard")
    return None


def _are_metrics(record: dict[str, Any]) -> bool:
    return "step" in record and all(isinstance(value, (int, float)) for value in record.values())


def _first_line_is(path: Path, wanted: Callable[[dict[str, Any]], bool]) -> bool:
    with path.open("rb") as lines:
        line = lines.readline(_LONGEST_LINE)
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(record, dict) and wanted(record)
