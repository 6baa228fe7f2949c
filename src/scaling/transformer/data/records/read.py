"""Read the records of a file, in order: JSON lines, or a JSON array of records."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Final

from scaling.core import DataError, StorageError
from scaling.transformer.data.compression import DAMAGE, open_binary
from scaling.transformer.data.readers import BYTE_ORDER_MARK, BadRecord, Piece, PieceReader
from scaling.transformer.data.records.budget import RecordBudget
from scaling.transformer.data.records.encode import RecordEncoder
from scaling.transformer.data.records.fields import Refusal, kind
from scaling.transformer.data.records.formats import RecordFormat, recognise, unknown_format
from scaling.transformer.data.records.record import Record

AT_ONCE: Final = 256
"""How many records are encoded together: enough for all cores, few enough for memory."""
_ARRAY_SUFFIXES: Final = (".json", ".json.gz", ".json.zst")

Raw = tuple[str, Any | Refusal]
"""The place of a record, and its JSON value or why there is none."""


def read_records(path: Path, encoder: RecordEncoder, budget: RecordBudget) -> Iterator[Record]:
    """Yield the records of a file that can be trained on; what becomes of the others is counted in `budget`.

    Raises, while iterating:
        DataError: The file is not there, is no file of records or has none that can be trained on; more records are bad
            than allowed.
        StorageError: The file cannot be read.
    """
    raws = iter(raw_records(path))
    form = encoder.format
    seen = used = 0
    bad_before = len(budget.bad)
    while batch := list(islice(raws, AT_ONCE)):
        seen += len(batch)
        if form is None:
            form = _recognised(batch)
        if form is not None:
            budget.formats[path] = form
        values = [value for _, value in batch if not isinstance(value, Refusal)]
        encoded = iter(encoder.encode(values, form, folder=path.parent) if form is not None else ())
        for place, value in batch:
            result = value if isinstance(value, Refusal) else next(encoded)
            if isinstance(result, Refusal):
                budget.refuse(place, str(result))
            elif (record := budget.admit(result, place)) is not None:
                used += 1
                yield record
    if seen == 0:
        raise DataError(f"{path} is empty: it holds no records")
    if used == 0:
        why = budget.left_out() or "none counts"
        first = "".join(f"; the first bad one is {named}" for named in budget.bad[bad_before : bad_before + 1])
        raise DataError(f"{path}: none of its {seen} records can be trained on ({why}){first}")


def raw_records(path: Path) -> Iterator[Raw]:
    """Yield the JSON value of each record with its place.

    Raises, while iterating:
        DataError: The file is not there, or is an array that is not JSON.
        StorageError: The file cannot be read.
    """
    if path.name.lower().endswith(_ARRAY_SUFFIXES) and (content := _array(path)) is not None:
        for number, value in enumerate(content, start=1):
            yield f"element {number} of {path}", value
        return
    reader = PieceReader(Piece(path))
    for value in reader.values():
        if isinstance(value, BadRecord):
            yield f"{path}, line {value.line}", Refusal(value.reason)
        else:
            yield f"{path}, line {reader.lines}", value


def _recognised(batch: list[Raw]) -> RecordFormat | None:
    """Return the format of the first record; None where all records are bad.

    Raises:
        DataError: The record is of no known format.
    """
    for place, value in batch:
        if not isinstance(value, Refusal):
            form = recognise(value)
            if form is None:
                raise DataError(f"{place}: {unknown_format(value)}; name the format, or mend the record")
            return form
    return None


def _array(path: Path) -> list[Any] | None:
    """Return the elements of a JSON array, None for a file of JSON lines.

    Raises:
        DataError: The file is neither.
        StorageError: It cannot be read.
    """
    try:
        with open_binary(path) as handle:
            content = handle.read()
    except DAMAGE as error:
        raise DataError(f"{path}: the compressed file is damaged or cut off ({error})") from error
    except FileNotFoundError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror or error}") from error
    content = content.removeprefix(BYTE_ORDER_MARK)
    if not content.strip():
        raise DataError(f"{path} is empty: it holds no records")
    try:
        values = json.loads(content)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            return None
        raise DataError(f"{path}, line {error.lineno}: not JSON ({error.msg}: column {error.colno})") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON that can be read ({error})") from error
    if isinstance(values, dict):
        return None
    if not isinstance(values, list):
        raise DataError(f"{path} holds {kind(values)}; a list of records is due, or a record on each line")
    if not values:
        raise DataError(f"{path} is empty: it holds no records")
    return values
