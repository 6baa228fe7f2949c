"""Documents are read from whatever people keep them in; what is none is reported with its place and skipped."""

from __future__ import annotations

import gzip
import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from scaling.core.errors import DataError, StorageError
from scaling.transformer.data.left_out import LeftOut
from scaling.transformer.data.readers import BadRecord, Piece, PieceReader, find_inputs, text_size

GOOD = b'{"text": "good"}\n'


def read(path: Path, start: int = 0, stop: int | None = None, **options: object) -> list[str | BadRecord]:
    return list(PieceReader(Piece(path, start, stop), **options))  # type: ignore[arg-type]  # options of several types


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("line", "reason", "offset"),
    [
        (b'{"text": "cut off', "not JSON (Unterminated string", 0),
        (b"plain words", "not JSON (Expecting value: column 1)", 0),
        (b'{"text": "a" "b"}', "not JSON (Expecting ',' delimiter", 0),
        (b"[" * 200_000, "not JSON", 0),
        (b'{"n": ' + b"9" * 5000 + b"}", "not JSON that can be read (Exceeds the limit", 0),
        (b'{"text": "caf\xe9"}', "not UTF-8 (invalid continuation byte)", 13),
        (b'{"text": "\xff"}', "not UTF-8 (invalid start byte)", 10),
        ('{"text": "wide"}'.encode("utf-16-le"), "a NUL character", 1),
        (b'{"text": "a\x00b"}', "a NUL character", 11),
        (b'{"text": "a\\u0000b"}', "a NUL character", 0),
        (b'{"text": "\\ud83d"}', "half a surrogate pair at character 0", 0),
        (b'{"body": "a"}', "no key 'text'; the keys are 'body'", 0),
        (b"{}", "no key 'text'; the keys are none", 0),
        (b'{"text": null}', "'text' is a JSON null, not text", 0),
        (b'{"text": ["a"]}', "'text' is a JSON array, not text", 0),
        (b'["text"]', "a JSON array where an object with the key 'text' is expected", 0),
        (b'"text"', "a JSON string where", 0),
        (b'{"text": "' + b"x" * 3_000_000 + b'"}', "longer than 1000000 bytes", 0),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_bad_line_is_reported_with_line_and_byte_and_the_others_are_read(
    tmp_path: Path, line: bytes, reason: str, offset: int
) -> None:
    path = write(tmp_path / "data.jsonl", GOOD + line + b"\n" + GOOD)
    first, bad, last = read(path, max_document_bytes=1_000_000)
    assert (first, last) == ("good", "good")
    assert isinstance(bad, BadRecord)
    assert reason in bad.reason
    assert (bad.path, bad.line, bad.offset) == (path, 2, len(GOOD) + offset)
    assert str(bad).startswith(f"{path}, line 2 (byte {len(GOOD) + offset}): ")


@pytest.mark.parametrize(
    ("content", "documents"),
    [
        (b'\xef\xbb\xbf{"text": "a"}\n', ["a"]),
        (b'{"text": "a"}\r\n{"text": "b"}\r\n', ["a", "b"]),
        (b'{"text": "a"}\n{"text": "b"}', ["a", "b"]),
        (b'{"text": "a"}\n\n  \n{"text": "b"}\n\n', ["a", "b"]),
        (b'{"text": ""}\n{"text": "b"}\n', ["", "b"]),
        (b'{"text": "\\ud83c\\udf89 \\u00fc \\n\\u2028"}\n', ["🎉 ü \n\u2028"]),
        ('{"text": "\u2028\u0085"}\n'.encode(), ["\u2028\u0085"]),
        (b"", []),
        (b"\n", []),
    ],
)
def test_harmless_oddities_of_json_lines_change_nothing(tmp_path: Path, content: bytes, documents: list[str]) -> None:
    assert read(write(tmp_path / "data.jsonl", content)) == documents


def test_the_field_can_be_chosen(tmp_path: Path) -> None:
    assert read(write(tmp_path / "data.jsonl", b'{"text": "a", "body": "b"}\n'), field="body") == ["b"]


def test_what_ends_with_the_last_of_the_bytes_that_a_document_may_have_is_read(tmp_path: Path) -> None:
    for line, whole in ((GOOD, True), (GOOD[:-1], True), (b" " + GOOD, False), (b" " + GOOD[:-1], False)):
        documents = read(write(tmp_path / "a.jsonl", line), max_document_bytes=len(GOOD) - 1)
        assert documents == ["good"] if whole else isinstance(documents[0], BadRecord)


@pytest.mark.parametrize("size", [1, 2, 5, 16, 17, 18, 1000])
def test_pieces_of_a_file_hold_each_line_once_wherever_it_is_cut(tmp_path: Path, size: int) -> None:
    lines = [json.dumps({"text": f"document {number} {'x' * (number * 7 % 23)}"}) for number in range(12)]
    lines[5] = "bad"
    path = write(tmp_path / "data.jsonl", "\n".join(lines).encode())
    total = path.stat().st_size
    pieces = [PieceReader(Piece(path, start, min(start + size, total))) for start in range(0, total, size)]
    found = [document for piece in pieces for document in piece]
    texts = [document if isinstance(document, str) else document.offset for document in found]
    whole = [document if isinstance(document, str) else document.offset for document in read(path)]
    assert texts == whole
    assert sum(piece.lines for piece in pieces) == len(lines)


def test_a_piece_inside_an_endless_line_does_not_read_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "data.jsonl", b"x" * 1_000_000)
    read_bytes: list[int] = []

    class Watched(io.BytesIO):
        def readline(self, size: int | None = -1, /) -> bytes:
            line = super().readline(size)
            read_bytes.append(len(line))
            return line

    monkeypatch.setattr("scaling.transformer.data.readers.open_binary", lambda path: Watched(path.read_bytes()))
    monkeypatch.setattr("scaling.transformer.data.readers.SKIP_BYTES", 1000)
    first = read(path, 0, 10_000, max_document_bytes=1000)
    assert [type(document) for document in first] == [BadRecord]
    assert read(path, 500_000, 510_000) == []
    assert sum(read_bytes) < 30_000


def test_a_text_file_is_one_document_without_byte_order_mark_and_carriage_returns(tmp_path: Path) -> None:
    path = write(tmp_path / "data.TXT", b"\xef\xbb\xbfone\r\n\r\ntwo\rthree\n")
    assert read(path) == ["one\n\ntwo\rthree\n"]


@pytest.mark.parametrize(
    ("content", "reason", "line", "offset"),
    [
        (b"one\ntwo \xff\n", "not UTF-8", 2, 8),
        (b"one\ntwo\nthr\x00ee", "a NUL character", 3, 11),
        (b"one\n" * 300, "longer than 1000 bytes", 1, 0),
    ],
)
def test_a_text_file_that_is_no_text_is_one_bad_record(
    tmp_path: Path, content: bytes, reason: str, line: int, offset: int
) -> None:
    (bad,) = read(write(tmp_path / "data.txt", content), max_document_bytes=1000)
    assert isinstance(bad, BadRecord)
    assert reason in bad.reason
    assert (bad.line, bad.offset) == (line, offset)


def test_gzip_files_are_read_and_one_that_is_cut_off_is_noticed(tmp_path: Path) -> None:
    content = gzip.compress(b"".join(json.dumps({"text": str(number)}).encode() + b"\n" for number in range(5000)))
    assert read(write(tmp_path / "data.jsonl.gz", content)) == [str(number) for number in range(5000)]
    *documents, bad = read(write(tmp_path / "cut.jsonl.gz", content[: len(content) // 2]))
    assert documents == [str(number) for number in range(len(documents))]
    assert isinstance(bad, BadRecord)
    assert "damaged or cut off" in bad.reason
    assert bad.line == len(documents) + 1
    (bad,) = read(write(tmp_path / "fake.txt.gz", b"no gzip"))
    assert isinstance(bad, BadRecord)
    assert read(write(tmp_path / "text.txt.gz", gzip.compress(b"words"))) == ["words"]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.txt.gz", "a.jsonl.zst"])
def test_a_compressed_file_of_no_bytes_is_cut_off_and_not_empty(tmp_path: Path, name: str) -> None:
    (bad,) = read(write(tmp_path / name, b""))
    assert isinstance(bad, BadRecord)
    assert "cut off: it is empty" in bad.reason
    assert bad.line == 1


def test_the_text_in_a_file_is_measured_without_its_compression(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Table(io.BytesIO):
        columns = (("text", 30), ("url", 500))
        group = SimpleNamespace(
            num_columns=2,
            column=lambda number: SimpleNamespace(
                path_in_schema=Table.columns[number][0], total_uncompressed_size=Table.columns[number][1]
            ),
        )
        metadata = SimpleNamespace(num_row_groups=3, row_group=lambda number: Table.group)

    parquet = SimpleNamespace(ParquetFile=lambda path: Table())
    monkeypatch.setitem(sys.modules, "pyarrow", SimpleNamespace(parquet=parquet))
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", parquet)
    assert text_size(write(tmp_path / "a.parquet", b"small"), field="text") == 3 * 30
    assert text_size(write(tmp_path / "a.txt.gz", gzip.compress(b"x" * 5000)), field="text") == 5000
    assert text_size(write(tmp_path / "b.txt.gz", b"damaged"), field="text") == len(b"damaged")
    assert text_size(write(tmp_path / "a.jsonl", b'{"text": 1}'), field="text") == 11


def test_rows_that_are_too_long_or_binary_are_bad_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Table(io.BytesIO):
        schema_arrow = SimpleNamespace(names=["text"])

        def iter_batches(self, columns: Sequence[str], batch_size: int) -> list[SimpleNamespace]:
            values = ["good", "x" * 1001, "é" * 501, "é" * 500, b"bytes", None]
            return [SimpleNamespace(column=lambda number: SimpleNamespace(to_pylist=lambda: values))]

    parquet = SimpleNamespace(ParquetFile=lambda path: Table())
    monkeypatch.setitem(sys.modules, "pyarrow", SimpleNamespace(parquet=parquet, ArrowException=ValueError))
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", parquet)
    found = read(tmp_path / "a.parquet", max_document_bytes=1000)
    assert [record if isinstance(record, str) else (record.line, record.reason[:16]) for record in found] == [
        "good",
        (2, "longer than 1000"),
        (3, "longer than 1000"),
        "é" * 500,
        (5, "'text' is binary"),
        (6, "'text' is a JSON"),
    ]


class Column(list[object]):
    """A column of a Parquet file, whose values may be bytes that are not UTF-8."""

    def to_pylist(self) -> list[object]:
        return [scalar.as_py() for scalar in self]

    def __iter__(self) -> Iterator[SimpleNamespace]:
        for value in super().__iter__():
            decode = value.decode if isinstance(value, bytes) else partial(lambda text: text, value)
            yield SimpleNamespace(as_py=decode)


def test_a_disk_that_fails_is_no_damaged_parquet_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(path: Path) -> object:
        raise OSError(5, "Input/output error")

    parquet = SimpleNamespace(ParquetFile=opened)
    monkeypatch.setitem(sys.modules, "pyarrow", SimpleNamespace(parquet=parquet, ArrowException=ValueError))
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", parquet)
    with pytest.raises(StorageError, match="Input/output error"):
        read(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda arrow: arrow("Parquet file size is 0 bytes"), id="empty"),
        pytest.param(lambda arrow: OSError("Corrupt snappy compressed data."), id="pyarrow's errors have no number"),
    ],
)
def test_a_damaged_parquet_file_is_a_bad_record_like_any_other_damaged_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[type[Exception]], Exception]
) -> None:
    class ArrowError(Exception):
        pass

    class Table(io.BytesIO):
        schema_arrow = SimpleNamespace(names=["text"])

        def iter_batches(self, columns: Sequence[str], batch_size: int) -> Iterator[SimpleNamespace]:
            yield SimpleNamespace(column=lambda number: Column(["good", b"caf\xe9", b"fine"]))
            raise damage(ArrowError)

    parquet = SimpleNamespace(ParquetFile=lambda path: Table())
    monkeypatch.setitem(sys.modules, "pyarrow", SimpleNamespace(parquet=parquet, ArrowException=ArrowError))
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", parquet)
    good, odd, fine, bad = read(tmp_path / "a.parquet")
    assert (good, fine) == ("good", "fine")
    assert isinstance(odd, BadRecord)
    assert (odd.line, odd.offset, odd.reason) == (2, 3, "not UTF-8 (unexpected end of data)")
    assert isinstance(bad, BadRecord)
    assert bad.line == 4
    assert bad.reason == f"the Parquet file is damaged or cut off ({damage(ArrowError)})"
    (missing,) = read(tmp_path / "a.parquet", field="body")
    assert isinstance(missing, BadRecord)
    assert missing.reason == "no column 'body'; the columns are 'text' (--field names it)"


@pytest.mark.parametrize(("name", "package"), [("a.jsonl.zst", "zstandard"), ("a.parquet", "pyarrow")])
def test_a_package_that_is_not_installed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DataError, match=rf"{name}.* takes the package {package}; run `pip install {package}`"):
        read(write(tmp_path / name, b"content"))


def test_a_file_that_vanished_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.jsonl cannot be read: No such file"):
        read(tmp_path / "gone.jsonl")


def test_a_file_that_is_there_but_cannot_be_read_is_an_error_of_the_storage(tmp_path: Path) -> None:
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(StorageError, match=r"folder\.jsonl cannot be read: Is a directory"):
        read(tmp_path / "folder.jsonl")


def test_inputs_are_files_and_the_readable_files_of_folders_in_order(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "deeper").mkdir(parents=True)
    for name in ("b.txt", "a.jsonl", "notes.md", "deeper/c.jsonl.gz", "deeper/d.parquet"):
        (folder / name).touch()
    (tmp_path / "z.txt").touch()
    found = find_inputs([tmp_path / "z.txt", folder])
    assert [path.relative_to(tmp_path).as_posix() for path in found] == [
        "z.txt",
        "folder/a.jsonl",
        "folder/b.txt",
        "folder/deeper/c.jsonl.gz",
        "folder/deeper/d.parquet",
    ]


SKIPPED = b'{"path": "a", "line": 1, "offset": 0, "reason": "not JSON"}\n'


def test_what_the_library_writes_among_texts_is_no_text_and_what_it_cannot_unpack_is_named(tmp_path: Path) -> None:
    metrics = b'{"step": 1, "training/loss": NaN}\n'
    log = ("metrics.jsonl", "metrics.previous.jsonl", "metrics.previous.12.jsonl", "metrics.repeated.jsonl")
    written = {"web.skipped.jsonl": SKIPPED, **dict.fromkeys((*log, "Metrics.JSONL"), metrics)}
    packed = {"a.txt.bz2": b"", "b.JSONL.xz": b"", "c.parquet.zip": b""}
    texts = {
        "mine.skipped.jsonl": GOOD,
        "own/metrics.jsonl": b'{"step": 1, "text": "word"}\n',
        "own/metrics.repeated.jsonl": b'{"text": "word"}\n',
        "own/metrics.of.mine.jsonl": metrics,
        "own/web.skipped.jsonl": b"not JSON",
        "t.txt": SKIPPED,
    }
    (tmp_path / "own").mkdir()
    for name, content in {**written, **packed, **texts, "notes.bz2": b"", "a.bin": b""}.items():
        write(tmp_path / name, content)
    left_out: list[LeftOut] = []
    found = find_inputs([tmp_path], left_out=left_out.append)
    assert [path.relative_to(tmp_path).as_posix() for path in found] == sorted(texts)
    assert {file.path.name for file in left_out} == {*written, *packed}
    assert "bz2 is not read; unpack it" in str(next(file for file in left_out if file.path.suffix == ".bz2"))
    assert find_inputs([tmp_path]) == found
    assert find_inputs([tmp_path / "web.skipped.jsonl"]) == [tmp_path / "web.skipped.jsonl"]  # asked for by name


def test_inputs_that_cannot_be_read_are_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.txt does not exist"):
        find_inputs([tmp_path / "absent.txt"])
    with pytest.raises(DataError, match=r"no known format; its name has to end in one of \.txt, \.jsonl"):
        find_inputs([write(tmp_path / "data.csv", b"")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no file that ends in one of"):
        find_inputs([tmp_path / "empty"])
    path = write(tmp_path / "data.txt", b"")
    with pytest.raises(DataError, match="given more than once"):
        find_inputs([path, path])
    (tmp_path / "link.txt").symlink_to(path)
    with pytest.raises(DataError, match=r"link\.txt is given more than once \(also as .*data\.txt\)"):
        find_inputs([path, tmp_path / "link.txt"])
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(DataError, match="no regular file"):
        find_inputs([tmp_path / "pipe.jsonl"])
    with pytest.raises(StorageError, match="File name too long"):
        find_inputs([tmp_path / f"{'x' * 300}.jsonl"])


def test_folders_that_are_links_are_looked_into_once(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "folder", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    write(elsewhere / "a.txt", b"")
    (folder / "linked").symlink_to(elsewhere)
    (folder / "linked again").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(folder)
    assert find_inputs([folder]) == [folder / "linked" / "a.txt"]


def test_a_folder_that_cannot_be_read_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "locked").mkdir()
    write(tmp_path / "a.txt", b"")
    scandir = os.scandir

    def refusing(path: str) -> object:
        if os.fspath(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(StorageError, match=r"Permission denied \(.*locked\)"):
        find_inputs([tmp_path])
