"""Read documents from text files of several formats; a bad record is reported with its place, and reading continues.

Formats: `.txt` (one document per file), `.jsonl` (one per line, in one field of a JSON object), `.parquet` (one per
row, in one column); the first two also with `.gz` or `.zst`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, TypeVar, final

from pydantic_core import from_json

from scaling.core import DataError, StorageError, storage_errors
from scaling.transformer.data.compression import DAMAGE, open_binary
from scaling.transformer.data.left_out import LeftOut, own_file, packed_file

PLAIN_SUFFIXES = (".txt", ".jsonl")
COMPRESSED_SUFFIXES = tuple(plain + packed for plain in PLAIN_SUFFIXES for packed in (".gz", ".zst"))
SUFFIXES = (*PLAIN_SUFFIXES, *COMPRESSED_SUFFIXES, ".parquet")

_Read = TypeVar("_Read")

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
SKIP_BYTES = 1 << 20


MAX_DOCUMENT_BYTES: Final = 32 << 20
"""Default limit for a document: longer ones are bad records."""


@dataclass(frozen=True)
class Piece:
    """A part of an input file: the lines that begin at bytes `start` to `stop` (exclusive). No `stop`: all of it."""

    path: Path
    start: int = 0
    stop: int | None = None


@dataclass(frozen=True)
class BadRecord:
    """A record that cannot be a document."""

    path: Path
    line: int
    """Counted from 1: in the whole file or, from the reader of a piece, in that piece. For a Parquet file, the row."""
    offset: int
    """The byte of the (uncompressed) file at which the fault, or the line with it, begins."""
    reason: str

    def __str__(self) -> str:
        return f"{self.path}, line {self.line} (byte {self.offset}): {self.reason}"


def find_inputs(inputs: Sequence[Path], *, left_out: Callable[[LeftOut], None] | None = None) -> list[Path]:
    """List the files to read: the given ones and, in given folders, all of a known format, sorted.

    `left_out` is called with each file in a folder that looks like text and is not read.

    Raises:
        DataError: An input is missing, of an unknown format, no regular file or given twice, or there is no file.
        StorageError: A folder cannot be read.
    """
    found: list[Path] = []
    for path in inputs:
        with storage_errors(f"looking for input at {path}"):
            if path.is_dir():
                found += _texts_below(path, left_out)
            elif not path.exists():
                raise DataError(f"input {path} does not exist.")
            elif _suffix(path) is None:
                raise DataError(
                    f"input {path} is of no known format; its name has to end in one of {', '.join(SUFFIXES)}."
                )
            elif not path.is_file():
                raise DataError(f"input {path} is no regular file; write what it delivers to one first.")
            else:
                found.append(path)
    if not found:
        raise DataError(
            f"no file that ends in one of {', '.join(SUFFIXES)} in {', '.join(map(str, inputs)) or 'nothing'}."
        )
    known: dict[str, Path] = {}
    for path in found:
        target = os.path.realpath(path)
        if target in known:
            other = "" if known[target] == path else f" (also as {known[target]})"
            raise DataError(f"input {path} is given more than once{other}; leave the others out.")
        known[target] = path
    return found


def _texts_below(folder: Path, left_out: Callable[[LeftOut], None] | None) -> Iterator[Path]:
    for file in sorted(_files_below(folder)):
        other = packed_file(file, SUFFIXES) if _suffix(file) is None else own_file(file)
        if other is not None and left_out is not None:
            left_out(other)
        elif other is None and _suffix(file) is not None:
            yield file


def _files_below(folder: Path) -> Iterator[Path]:
    """Yield the regular files in a folder and all folders below, also those that are links, each folder once.

    Raises:
        OSError: A folder cannot be read. Skipping it would lose data silently.
    """

    def refuse(error: OSError) -> None:
        raise error

    seen = {os.path.realpath(folder)}
    for parent, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        targets = {os.path.realpath(os.path.join(parent, name)): name for name in sorted(folders, reverse=True)}
        folders[:] = [name for target, name in targets.items() if target not in seen]
        seen.update(targets)
        yield from (file for name in names if (file := Path(parent, name)).is_file())


def text_size(path: Path, *, field: str) -> int:
    """Return about how many bytes of text a file holds; a compressed file has to be read for this.

    A file that cannot be read counts with its size; iterating over it reports the reason.
    """
    size = path.stat().st_size
    match path.suffix.lower():
        case ".gz" | ".zst":
            decompressed = 0
            with suppress(*DAMAGE, DataError), open_binary(path) as handle:
                while part := handle.read(SKIP_BYTES):
                    decompressed += len(part)
            return max(decompressed, size)
        case ".parquet":
            with suppress(Exception):  # the package may be missing, and only some of its errors have classes of its own
                import pyarrow.parquet

                with pyarrow.parquet.ParquetFile(path) as table:
                    groups = [table.metadata.row_group(number) for number in range(table.metadata.num_row_groups)]
                columns = (group.column(number) for group in groups for number in range(group.num_columns))
                return sum(column.total_uncompressed_size for column in columns if column.path_in_schema == field)
    return size


def names_text(path: Path) -> bool:
    """Return whether a file of this name is read where it is in a folder of text."""
    return _suffix(path) is not None


def splittable(path: Path) -> bool:
    """Return whether a file can be read from the middle."""
    return _suffix(path) == ".jsonl"


def _suffix(path: Path) -> str | None:
    name = path.name.lower()
    return next((suffix for suffix in sorted(SUFFIXES, key=len, reverse=True) if name.endswith(suffix)), None)


@final
class PieceReader:
    """Iterable of the documents of a piece: texts, possibly empty, and a BadRecord in place of each invalid one.

    Memory stays within a few times `max_document_bytes`, whatever the file holds. `lines` counts the lines read so far.

    Raises, while iterating:
        DataError: The file is not there, or needs a package that is not installed.
        StorageError: The file cannot be read.
    """

    def __init__(self, piece: Piece, *, field: str = "text", max_document_bytes: int = MAX_DOCUMENT_BYTES) -> None:
        self._piece = piece
        self._field = field
        self._limit = max_document_bytes
        self.lines = 0

    def __iter__(self) -> Iterator[str | BadRecord]:
        suffix = _suffix(self._piece.path) or ""
        if suffix == ".parquet":
            return self._reporting(self._rows)
        if suffix.startswith(".txt"):
            return self._reporting(lambda: self._opened(self._whole))
        return self._reporting(lambda: self._opened(lambda handle: self._json_lines(handle, self._json_document)))

    def values(self) -> Iterator[Any]:
        """Iterate over the JSON values on the lines, of any type, with a BadRecord in place of each invalid one.

        `lines` is the line number of the latest value. Raises the same errors as iterating over documents.
        """
        return self._reporting(lambda: self._opened(lambda handle: self._json_lines(handle, self._json_value)))

    def _reporting(self, read: Callable[[], Iterator[_Read]]) -> Iterator[_Read]:
        try:
            yield from read()
        except OSError as error:
            found_nothing = isinstance(error, FileNotFoundError) or error.errno is None  # pyarrow's have no errno
            category = DataError if found_nothing else StorageError
            raise category(f"{self._piece.path} cannot be read: {error.strerror or error}") from error

    def _opened(self, read: Callable[[IO[bytes]], Iterator[_Read]]) -> Iterator[_Read | BadRecord]:
        if self._piece.path.suffix.lower() in (".gz", ".zst") and self._piece.path.stat().st_size == 0:
            self.lines = 1
            yield self._bad("the compressed file is cut off: it is empty", offset=0)
            return
        with open_binary(self._piece.path) as handle:
            yield from read(handle)

    def _bad(self, reason: str, *, offset: int, line: int | None = None) -> BadRecord:
        return BadRecord(self._piece.path, self.lines if line is None else line, offset, reason)

    def _whole(self, handle: IO[bytes]) -> Iterator[str | BadRecord]:
        try:
            content = handle.read(self._limit + 1)
        except DAMAGE as error:
            yield self._bad(f"the compressed file is damaged or cut off ({error})", offset=0, line=1)
            return
        if len(content) > self._limit:
            yield self._bad(_too_long(self._limit), offset=0, line=1)
            return
        text = _decode(content)
        if isinstance(text, _Fault):
            line = content.count(b"\n", 0, text.offset) + 1
            yield self._bad(text.reason, offset=text.offset, line=line)
        else:
            self.lines = text.count("\n") + 1
            yield text.replace("\r\n", "\n")

    def _json_lines(
        self, handle: IO[bytes], read: Callable[[bytes, int], _Read | BadRecord]
    ) -> Iterator[_Read | BadRecord]:
        start, stop = self._piece.start, self._piece.stop
        offset = start
        if start > 0:
            # A line that begins before `start` belongs to the piece before.
            handle.seek(start - 1)
            offset = start - 1 + _skip_line(handle, enough=None if stop is None else stop - start + 1)
        while stop is None or offset < stop:
            try:
                line = handle.readline(self._limit + 1)
                size = len(line)
                whole = size <= self._limit or line.endswith(b"\n")
                if not whole:
                    size += _skip_line(handle, enough=None if stop is None else stop - offset - size)
            except DAMAGE as error:
                self.lines += 1
                yield self._bad(f"the compressed file is damaged or cut off ({error})", offset=offset)
                return
            if not line:
                return
            self.lines += 1
            if not whole:
                yield self._bad(_too_long(self._limit), offset=offset)
            elif not line.isspace():
                yield read(line, offset)
            offset += size

    def _json_value(self, line: bytes, offset: int) -> Any:
        """Return the JSON value of a line, or a BadRecord."""
        text = _decode(line.rstrip(b"\r\n"), start_of_file=offset == 0)
        if isinstance(text, _Fault):
            return self._bad(text.reason, offset=offset + text.offset)
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            return self._bad(f"not JSON ({error.msg}: column {error.colno})", offset=offset)
        except (ValueError, RecursionError) as error:
            return self._bad(f"not JSON that can be read ({error})", offset=offset)

    def _json_document(self, line: bytes, offset: int) -> str | BadRecord:
        try:  # three times as fast as the standard library, which may accept a line refused here, or say why not
            text = from_json(line, allow_inf_nan=False, cache_strings="keys")[self._field]
        except (ValueError, LookupError, TypeError):
            text = None
        if type(text) is str and "\0" not in text:  # it has no halves of surrogate pairs: Rust's strings have none
            return text
        record = self._json_value(line, offset)
        if isinstance(record, BadRecord):
            return record
        if not isinstance(record, dict):
            return self._bad(
                f"a JSON {_json_type(record)} where an object with the key {self._field!r} is expected", offset=offset
            )
        if self._field not in record:
            keys = ", ".join(map(repr, list(record)[:8])) or "none"
            return self._bad(f"no key {self._field!r}; the keys are {keys} (--field names it)", offset=offset)
        return self._document(record[self._field], offset)

    def _document(self, value: Any, offset: int) -> str | BadRecord:
        if not isinstance(value, str):
            kind = "binary" if isinstance(value, bytes) else f"a JSON {_json_type(value)}"
            return self._bad(f"{self._field!r} is {kind}, not text", offset=offset)
        if "\0" in value:
            return self._bad(_NUL, offset=offset)
        try:
            value.encode()
        except UnicodeEncodeError as error:
            return self._bad(f"half a surrogate pair at character {error.start}, which is no character", offset=offset)
        return value

    def _rows(self) -> Iterator[str | BadRecord]:
        path = self._piece.path
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError as error:
            raise DataError(
                f"{path}: reading .parquet files takes the package pyarrow; run `pip install pyarrow`."
            ) from error
        try:
            with pyarrow.parquet.ParquetFile(path) as table:
                if self._field not in table.schema_arrow.names:
                    self.lines += 1
                    names = ", ".join(map(repr, table.schema_arrow.names))
                    reason = f"no column {self._field!r}; the columns are {names} (--field names it)"
                    yield self._bad(reason, offset=0)
                    return
                for batch in table.iter_batches(columns=[self._field], batch_size=1024):
                    for value in _values(batch.column(0)):
                        self.lines += 1
                        yield self._row(value)
        except (pyarrow.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            self.lines += 1
            reason = str(error).strip().partition("\n")[0]
            yield self._bad(f"the Parquet file is damaged or cut off ({reason})", offset=0)

    def _row(self, value: Any) -> str | BadRecord:
        if isinstance(value, _Fault):
            return self._bad(value.reason, offset=value.offset)
        if isinstance(value, str) and 4 * len(value) > self._limit < len(value.encode()):
            return self._bad(_too_long(self._limit), offset=0)
        return self._document(value, 0)


@dataclass(frozen=True)
class _Fault:
    reason: str
    offset: int


def _values(column: Any) -> Iterator[Any]:
    """Yield the values of a column, with a fault in place of each invalid one, such as bytes that are not UTF-8."""
    try:
        yield from column.to_pylist()
    except (ValueError, OverflowError):
        for scalar in column:
            try:
                value = scalar.as_py()
            except UnicodeDecodeError as error:
                value = _Fault(f"not UTF-8 ({error.reason})", error.start)
            except (ValueError, OverflowError) as error:
                value = _Fault(f"not a value that can be read ({error})", 0)
            yield value


_NUL = "a NUL character, which text does not contain; is this a binary file, or UTF-16?"


def _too_long(limit: int) -> str:
    return f"longer than {limit} bytes; split it, or raise --max-document-bytes"


def _json_type(value: object) -> str:
    names = {dict: "object", list: "array", str: "string", bool: "boolean", int: "number", float: "number"}
    return names.get(type(value), "null")


def _decode(content: bytes, *, start_of_file: bool = True) -> str | _Fault:
    """Decode UTF-8, dropping a byte-order mark at the start of the file."""
    skipped = len(BYTE_ORDER_MARK) if start_of_file and content.startswith(BYTE_ORDER_MARK) else 0
    if (place := content.find(b"\0")) >= 0:
        return _Fault(_NUL, place)
    try:
        return content[skipped:].decode()
    except UnicodeDecodeError as error:
        return _Fault(f"not UTF-8 ({error.reason})", skipped + error.start)


def _skip_line(handle: IO[bytes], *, enough: int | None) -> int:
    """Read to the end of the line, a bounded number of bytes at a time; return the number of bytes read.

    Once `enough` bytes are passed the rest does not matter: a piece inside a line of 100 GB must not read all of it.
    """
    skipped = 0
    while (enough is None or skipped < enough) and (part := handle.readline(SKIP_BYTES)):
        skipped += len(part)
        if part.endswith(b"\n"):
            break
    return skipped
