"""Check a step folder against its manifest, byte for byte, without torch and without executing anything."""

from __future__ import annotations

import contextlib
import hashlib
import heapq
import io
import os
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Final, final

from scaling.core.checkpoint import manifest as manifests
from scaling.core.checkpoint.disk import iterate_chunks, open_regular, read_small
from scaling.core.checkpoint.header import Header, read_header
from scaling.core.checkpoint.manifest import FileEntry, Manifest, Part, TensorEntry
from scaling.core.checkpoint.pickles import may_unpickle_to_code
from scaling.core.config.plain_words import first_of
from scaling.core.errors import CheckpointError

_CODE_SUFFIXES: Final = frozenset(
    {".pt", ".pth", ".pkl", ".pickle", ".bin", ".ckpt", ".metadata", ".distcp", ".joblib", ".npy", ".npz", ".py", ".so"}
)
"""Endings of files that other programs unpickle, import or run."""
MAX_STRANGE: Final = 10_000
"""How many files that do not belong to a checkpoint are examined."""

_FILES_AHEAD: Final = 1
"""How many further files are opened before the current one is done, so that no thread is idle at the end of a file."""

_CODE_MAGIC: Final = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"\x7fELF")


def read_manifest(folder: Path) -> Manifest:
    """Read and check the manifest of a step folder; without one the folder is not a complete checkpoint."""
    try:
        data = read_small(folder / manifests.FILE_NAME, manifests.MAX_BYTES)
    except CheckpointError as error:
        if any(folder.glob("model_state_layer_*.pt")):
            raise CheckpointError(
                f"{folder} is a checkpoint of the predecessor; convert it: scaling checkpoint import {folder} TARGET"
            ) from error
        raise CheckpointError(f"{folder} is not a complete checkpoint: {error}") from error
    try:
        return Manifest.decode(data)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from error


def strange_files(folder: Path, manifest: Manifest) -> tuple[list[str], list[str]]:
    """Return the names that the manifest does not list: (those that may hold code, harmless ones).

    Subfolders are searched, links are not followed. More than `MAX_STRANGE` files are a `CheckpointError`.
    """
    known = {manifests.FILE_NAME, *manifest.files}
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.name not in known)
    dangerous: list[str] = []
    pending = [folder / name for name in names]
    seen = 0
    while pending:
        path = pending.pop()
        seen += 1
        if seen + len(pending) > MAX_STRANGE:
            raise CheckpointError(
                f"{folder} holds more than {MAX_STRANGE} files that do not belong to the checkpoint, too many to look "
                "for code in; move them elsewhere"
            )
        if _may_hold_code(path):
            dangerous.append(path.relative_to(folder).as_posix())
        elif path.is_dir() and not path.is_symlink():
            with os.scandir(path) as entries:
                pending += [Path(entry) for entry in islice(entries, MAX_STRANGE)]
    hiding = {name.partition("/")[0] for name in dangerous}
    return sorted(dangerous), [name for name in names if name not in hiding]


def quick_problems(folder: Path, manifest: Manifest) -> list[str]:
    """Return what is wrong with a folder's files, judged by names, sizes and the beginnings of strange files."""
    found = [
        f"{name} does not belong to the checkpoint and may hold code; it was not opened"
        for name in strange_files(folder, manifest)[0]
    ]
    return found + [problem for name in manifest.files if (problem := _size_problem(folder, manifest, name))]


def file_problems(
    folder: Path, manifest: Manifest, names: Iterable[str], *, advance: Callable[[int], object] = lambda size: None
) -> list[str]:
    """Read these files in full and return every difference from the manifest by file and tensor.

    An empty list means that each byte is the one that was written. A file that cannot be read is a problem too. Calls
    `advance` with the size of each file that is done.
    """
    contents = manifest.keys_of_files()
    found: list[str] = []
    started: deque[tuple[str, _Opened | str]] = deque()

    def finish() -> None:
        name, opened = started.popleft()
        if isinstance(opened, str):
            found.append(opened)
        else:
            try:
                found.extend(_compare(opened, contents[name]))
            except (CheckpointError, OSError) as error:
                found.append(f"{name}: {error}{_contents(manifest, name)}")
            opened.file.close()
        advance(manifest.files[name].bytes)

    with contextlib.ExitStack() as files, _Digests() as digests:  # no thread reads any more when files are closed
        for name in names:
            problem: _Opened | str | None = _size_problem(folder, manifest, name)
            try:
                opened = problem or _open(folder / name, manifest.files[name], contents[name], digests, files)
            except (CheckpointError, OSError) as error:
                opened = f"{name}: {error}{_contents(manifest, name)}"
            started.append((name, opened))
            if len(started) > _FILES_AHEAD:
                finish()
        while started:
            finish()
    return found


@final
class _Digests:
    """Threads that read and hash parts of files in parallel: one core hashes more slowly than a good disk reads.

    Buffers are kept, because allocating and freeing large blocks fragments the heap. Each fits into a core's own cache,
    from which data are hashed about a fifth faster than from main memory.
    """

    _THREADS: Final = 4
    _BUFFER_BYTES: Final = 256 * 2**10

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(self._THREADS, thread_name_prefix="verify")
        self._buffers: SimpleQueue[memoryview] = SimpleQueue()
        for _ in range(self._THREADS):
            self._buffers.put(memoryview(bytearray(self._BUFFER_BYTES)))

    def __enter__(self) -> _Digests:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def start(self, file: io.FileIO, spans: Sequence[tuple[int, int]]) -> list[Future[str]]:
        """Start computing the SHA-256 digests of the bytes start..stop of a file, for each of these spans.

        The longest spans begin first, so that none is left to a single thread at the end.
        """
        order = sorted(range(len(spans)), key=lambda index: spans[index][0] - spans[index][1])
        futures = {index: self._pool.submit(self._digest, file, *spans[index]) for index in order}
        return [futures[index] for index in range(len(spans))]

    def _digest(self, file: io.FileIO, start: int, stop: int) -> str:
        buffer = self._buffers.get()
        try:
            digest = hashlib.sha256()
            for chunk in iterate_chunks(file, start, stop, buffer):
                digest.update(chunk)
            return digest.hexdigest()
        finally:
            self._buffers.put(buffer)


def share_of(manifest: Manifest, rank: int, world_size: int) -> list[str]:
    """Return the files that `rank` verifies: each file has exactly one such rank, the bytes are spread evenly."""
    loads = [(0, other) for other in range(world_size)]
    mine = []
    for name, entry in sorted(manifest.files.items(), key=lambda item: (-item[1].bytes, item[0])):
        load, least = loads[0]
        heapq.heapreplace(loads, (load + entry.bytes, least))
        if least == rank:
            mine.append(name)
    return mine


@dataclass(frozen=True)
class _Opened:
    """A file with a verified header, and the pending digests of its tensors."""

    path: Path
    file: io.FileIO
    header: Header
    digests: Sequence[Future[str]]


def _open(
    path: Path,
    entry: FileEntry,
    contents: Mapping[str, tuple[str, TensorEntry, Part]],
    digests: _Digests,
    files: contextlib.ExitStack,
) -> _Opened:
    file = open_regular(path)
    try:
        header = read_header(file, entry.bytes)
        if hashlib.sha256(header.raw).hexdigest() != entry.header_sha256:
            raise CheckpointError("its header is not the one that was written")
        if header.slots.keys() != contents.keys():
            raise CheckpointError("it does not hold the tensors that the manifest lists")
    except BaseException:
        file.close()
        raise
    files.enter_context(file)
    return _Opened(path, file, header, digests.start(file, [(slot.start, slot.stop) for slot in header.slots.values()]))


def _compare(opened: _Opened, contents: Mapping[str, tuple[str, TensorEntry, Part]]) -> list[str]:
    wait(opened.digests)  # for all of them, even if one fails: the file must not be closed while others read it
    found = []
    for (key, slot), digest in zip(opened.header.slots.items(), opened.digests, strict=True):
        name, tensor, part = contents[key]
        actual = digest.result()
        if (slot.dtype, slot.shape) != (tensor.dtype, part.box.shape):
            found.append(
                f"{opened.path.name}: {name} {part.box} is stored as {slot.dtype} {list(slot.shape)}, "
                f"the manifest says {tensor.dtype} {list(part.box.shape)}"
            )
        elif actual != part.sha256:
            found.append(f"{opened.path.name}: the data of {name} {part.box} is damaged")
    return found


def _size_problem(folder: Path, manifest: Manifest, name: str) -> str | None:
    path = folder / name
    if path.is_symlink() or not path.is_file():
        return f"{name} is missing or not a regular file{_contents(manifest, name)}"
    size, expected = path.stat().st_size, manifest.files[name].bytes
    if size != expected:
        return f"{name} has {size} bytes, the manifest says {expected}{_contents(manifest, name)}"
    return None


def _contents(manifest: Manifest, file: str) -> str:
    """Name the tensors that a file holds, for a message."""
    names = [name for name, entry in manifest.tensors.items() if any(part.file == file for part in entry.parts)]
    return f" (holds {first_of(names, 3)})" if names else ""


def _may_hold_code(path: Path) -> bool:
    if path.suffix in _CODE_SUFFIXES or path.name in _CODE_SUFFIXES:
        return True
    if path.is_symlink() or not path.is_file():
        return False
    with path.open("rb") as file:
        if file.read(8).startswith(_CODE_MAGIC):
            return True
    return may_unpickle_to_code(path)
