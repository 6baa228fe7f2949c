"""Compressed streams, with a stand-in for the optional package zstandard where it is not installed."""

from __future__ import annotations

import sys
import tracemalloc
import zlib
from pathlib import Path
from types import SimpleNamespace

import pytest

from scaling.transformer.data.compression import open_binary


class FakeFrame:
    """Decompresses as zstandard's `decompressobj` does, but from zlib data."""

    def __init__(self) -> None:
        self._frame = zlib.decompressobj()

    def decompress(self, data: bytes) -> bytes:
        try:
            return self._frame.decompress(data)
        except zlib.error as error:
            raise FakeError(str(error)) from error

    @property
    def eof(self) -> bool:
        return self._frame.eof

    @property
    def unused_data(self) -> bytes:
        return self._frame.unused_data


class FakeError(Exception):
    """What zstandard raises."""


@pytest.fixture(autouse=True)
def zstandard(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = SimpleNamespace(ZstdDecompressor=lambda: SimpleNamespace(decompressobj=FakeFrame), ZstdError=FakeError)
    monkeypatch.setitem(sys.modules, "zstandard", fake)


CONTENT = b"".join(b"line %d\n" % number for number in range(20_000))


def test_several_frames_are_read_as_one_stream_of_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.zst"
    path.write_bytes(zlib.compress(CONTENT[:1000]) + zlib.compress(CONTENT[1000:]))
    with open_binary(path) as handle:
        assert list(handle) == CONTENT.splitlines(keepends=True)


@pytest.mark.parametrize("keep", [1, 100, 10_000])
def test_a_stream_that_is_cut_off_is_an_error_and_not_its_end(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "a.zst"
    path.write_bytes(zlib.compress(CONTENT)[:keep])
    with open_binary(path) as handle, pytest.raises(EOFError, match="ends before its end marker"):
        handle.read()


def test_damaged_data_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.zst"
    path.write_bytes(b"garbage")
    with open_binary(path) as handle, pytest.raises(EOFError, match="incorrect header"):
        handle.read()


def test_data_that_decompresses_to_a_thousand_times_its_size_takes_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.zst"
    path.write_bytes(zlib.compress(bytes(32 << 20)))
    size = 0
    tracemalloc.start()
    try:
        with open_binary(path) as handle:
            while part := handle.read(1 << 16):
                size += len(part)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size == 32 << 20
    assert peak < 6 << 20
