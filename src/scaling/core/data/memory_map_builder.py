"""Write a memory map, document by document: complete under its name, or not there at all.

Everything is written to `<prefix>.*.building` and renamed at the end, the meta file last: a memory map opens only with
its meta file, so a build that is killed at any moment leaves nothing that opens, and the next build replaces its
leftovers.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Final, final

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray
from typing_extensions import Self

from scaling.core import faults
from scaling.core.data.digesting_file import DigestingFile, WeightFile
from scaling.core.data.documents import Integers, with_suffix
from scaling.core.data.memory_map_meta import RECORDS_VERSION, VERSION, MemoryMapMeta, integer_dtype
from scaling.core.errors import DataError, StorageError
from scaling.core.storage.lock import try_lock
from scaling.core.storage.writing import sync_folder

_SUFFIXES: Final = (".bin", ".idx", ".weights", ".meta.json")


@final
class MemoryMapDatasetBuilder:
    """A writer of documents as a memory map. As a context manager it finalizes at the end, and discards on an error.

    `eod_token_id`, the token that each added document ends with, is recorded for trainings on the data. `made_by`
    describes how records were made, which are documents that stay whole and whose tokens have weights; without it, the
    documents are not records.
    """

    def __init__(
        self,
        prefix: Path | str,
        dtype: DTypeLike = np.int32,
        index_dtype: DTypeLike = np.int64,
        *,
        tokenizer_sha256: str | None = None,
        eod_token_id: int | None = None,
        made_by: Mapping[str, str] | None = None,
    ) -> None:
        self.prefix = Path(prefix)
        self.dtype = integer_dtype(self.prefix, np.dtype(dtype).name)
        self.index_dtype = integer_dtype(self.prefix, np.dtype(index_dtype).name)
        self.document_count = 0
        self.token_count = 0
        self.max_token = 0
        self.dropped_documents = 0
        """Documents without tokens, which are left out."""
        self._tokenizer_sha256 = tokenizer_sha256
        self._eod_token_id = eod_token_id
        self.made_by = None if made_by is None else dict(made_by)
        """The description of records; it may be completed until the build is finalized."""
        self._is_open = True
        self._final = {suffix: with_suffix(self.prefix, suffix) for suffix in _SUFFIXES}
        self._building = {suffix: with_suffix(self.prefix, f"{suffix}.building") for suffix in _SUFFIXES}
        with _storing(self.prefix):
            self.prefix.parent.mkdir(parents=True, exist_ok=True)
            self._meta_descriptor = self._claim()
            self._tokens = DigestingFile(self._building[".bin"])
            self._index = DigestingFile(self._building[".idx"])
            self._building[".weights"].unlink(missing_ok=True)  # left by a build that was killed
            self._weights = None if made_by is None else WeightFile(self._building[".weights"])

    def add(self, tokens: Sequence[int] | Integers, weights: ArrayLike | None = None) -> None:
        """Append one document, or a record with the weights of its tokens. Empty ones are counted and left out.

        Raises:
            DataError: A token or a weight cannot be stored.
            StorageError: The files cannot be written.
        """
        array = np.asarray(tokens)
        if array.size == 0:
            self.dropped_documents += 1
            return
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise DataError(
                f"document {self.document_count} is an array of {array.dtype} with shape {array.shape}; "
                "a document is a one-dimensional sequence of integers"
            )
        largest = int(array.max())
        self._check_range(int(array.min()), largest)
        if self.token_count + array.size > np.iinfo(self.index_dtype).max:
            raise DataError(f"an index of {self.index_dtype.name} cannot address more tokens; build with int64")
        weighed = self._weighed(array, weights)
        with _storing(self.prefix):
            if self._weights is not None:
                self._weights.write(weighed)
            self._tokens.write(np.ascontiguousarray(array, dtype=self.dtype))
            self._index.write(np.array([self.token_count, array.size], dtype=self.index_dtype))
        self.document_count += 1
        self.token_count += array.size
        self.max_token = max(self.max_token, largest)

    def add_documents(self, tokens: Integers, lengths: NDArray[np.int64]) -> None:
        """Append documents whose tokens lie one after another; those without tokens are counted and left out.

        Raises:
            DataError: A token cannot be stored; no document is added then.
            StorageError: The files cannot be written.
        """
        if self._weights is not None or int(lengths.sum()) != tokens.size:
            raise ValueError("documents have no weights, and the sum of their lengths is the number of tokens")
        sizes = lengths[lengths > 0]
        self.dropped_documents += lengths.size - sizes.size
        if sizes.size == 0:
            return
        largest = int(tokens.max())
        if int(tokens.min()) < 0 or largest > int(np.iinfo(self.dtype).max):
            for document in np.split(tokens, np.cumsum(sizes)[:-1]):  # to name the document
                self._check_range(int(document.min()), int(document.max()))
                self.document_count += 1
        if self.token_count + tokens.size > np.iinfo(self.index_dtype).max:
            raise DataError(f"an index of {self.index_dtype.name} cannot address more tokens; build with int64")
        starts = np.cumsum(sizes) - sizes + self.token_count
        with _storing(self.prefix):
            self._tokens.write(np.ascontiguousarray(tokens, dtype=self.dtype))
            self._index.write(np.stack([starts, sizes], axis=1).astype(self.index_dtype))
        self.document_count += sizes.size
        self.token_count += tokens.size
        self.max_token = max(self.max_token, largest)

    def finalize(self) -> None:
        """Make the memory map appear under its name, safe on disk. A failure discards it."""
        if not self._is_open:
            return
        try:
            with _storing(self.prefix):
                self._write_meta()
                for suffix in self._written():  # the meta file last: it completes the memory map
                    faults.point("data.build.rename")
                    self._building[suffix].rename(self._final[suffix])
                sync_folder(self.prefix.parent)
        except BaseException:
            self.discard()
            raise
        self._release()

    def discard(self) -> None:
        """Abandon the build and remove its files."""
        if not self._is_open:
            return
        if not self._final[".meta.json"].exists():
            for path in (*self._final.values(), *self._building.values()):
                path.unlink(missing_ok=True)  # none of them existed when this build began
        self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.finalize()
        else:
            self.discard()

    def _written(self) -> list[str]:
        """Return the suffixes of the files that belong to this data set, the meta file's last."""
        return [suffix for suffix in _SUFFIXES if suffix != ".weights" or self._weights is not None]

    def _weighed(self, tokens: Integers, weights: ArrayLike | None) -> NDArray[np.float32]:
        if (weights is None) != (self._weights is None):
            raise ValueError("records have weights, documents have none")
        array = np.zeros(0, np.float32) if weights is None else np.asarray(weights, np.float32)
        if weights is not None and (array.shape != tokens.shape or not (np.isfinite(array) & (array >= 0)).all()):
            raise DataError(
                f"record {self.document_count} has {tokens.size} tokens and weights {array.tolist()[:8]}...; give each "
                "token one of 0 or more"
            )
        return array

    def _check_range(self, smallest: int, largest: int) -> None:
        limit = int(np.iinfo(self.dtype).max)
        if smallest < 0:
            raise DataError(f"document {self.document_count} contains token {smallest}; token ids are not negative")
        if largest > limit:
            raise DataError(
                f"document {self.document_count} contains token {largest}, which {self.dtype.name} cannot hold "
                f"(0 to {limit}); build with dtype {np.min_scalar_type(largest).name}"
            )

    def _claim(self) -> int:
        """Make sure that nobody has built or is building here; lock the future meta file and return its descriptor."""
        path = self._building[".meta.json"]
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if not try_lock(descriptor):
                raise DataError(f"another process is building {self.prefix} now; wait for it, or stop it")
            # First of all: the opened file may have been renamed, and the file of this name may be another builder's.
            if not path.exists() or not os.path.samestat(os.fstat(descriptor), path.stat()):
                raise DataError(f"another process was building {self.prefix} until now; start again")
            existing = [final for final in self._final.values() if final.exists()]
            if existing and not self._were_left_by_killed_build():
                path.unlink(missing_ok=True)
                raise DataError(f"{existing[0]} exists already; choose another prefix, or remove it first")
            for final in existing:
                final.unlink()
            os.ftruncate(descriptor, 0)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _were_left_by_killed_build(self) -> bool:
        """Return whether a build was killed while renaming: its meta file is complete, and no file has both names."""
        try:
            MemoryMapMeta.load(self._building[".meta.json"])
        except DataError:
            return False
        return not any(self._final[suffix].exists() and self._building[suffix].exists() for suffix in _SUFFIXES)

    def _write_meta(self) -> None:
        if self.document_count == 0:
            raise DataError(
                f"{self.prefix}: no document has any token ({self.dropped_documents} were empty), so there is nothing "
                "to write; check the input"
            )
        weights = self._weights
        meta = MemoryMapMeta(
            version=VERSION if weights is None else RECORDS_VERSION,
            dtype=self.dtype.name,
            index_dtype=self.index_dtype.name,
            document_count=self.document_count,
            token_count=self.token_count,
            max_token=self.max_token,
            dropped_documents=self.dropped_documents,
            index_sha256=self._index.close(),
            tokens_sha256=self._tokens.close(),
            tokenizer_sha256=self._tokenizer_sha256,
            eod_token_id=self._eod_token_id,
            weights_sha256=None if weights is None else weights.close(),
            weights_dtype=None if weights is None else weights.dtype.name,
            made_by=self.made_by,
        )
        os.write(self._meta_descriptor, meta.to_json().encode())
        os.fsync(self._meta_descriptor)

    def _release(self) -> None:
        self._is_open = False
        self._tokens.abandon()
        self._index.abandon()
        if self._weights is not None:
            self._weights.abandon()
        os.close(self._meta_descriptor)  # this also releases the lock


@contextmanager
def _storing(prefix: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"{prefix} cannot be written: {error}; make room or choose another place") from error
