"""Documents of token ids in files: the interface of every file format, and the checks that the formats share.

Files may be truncated, damaged or foreign, and may hold billions of documents. So each format checks sizes, counts and
a fixed number of places when it is opened, in a time that does not grow with the data; every access checks the entry
that it uses; reading the whole index checks all of it; and `verify` checks every byte.
"""

from __future__ import annotations

import hashlib
import operator
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, final

import numpy as np
from numpy.typing import NDArray

from scaling.core.data.open_files import advice, make_room
from scaling.core.errors import DataError, StorageError

Integers = NDArray[np.integer[Any]]

SPOT_CHECKS: Final = 256
"""How many places of a large file are checked when checking all of it would take too long."""
SPOT_SIZE: Final = 2048
BLOCK_SIZE: Final = 1 << 20
"""How many elements are read at once when all of a file is read."""


def with_suffix(prefix: Path, suffix: str) -> Path:
    """Return the file of a data set; dots in the prefix are part of its name."""
    return prefix.parent / (prefix.name + suffix)


def damaged(path: Path, what: str) -> DataError:
    """Return the error for a file that does not hold what its own header or index promises."""
    return DataError(f"{path} is damaged or incomplete: {what}; copy it again from its source, or build it again")


def unreadable(path: Path, error: OSError, where: str = "") -> StorageError:
    """Return the error for a file that exists but cannot be read; `where` may name a place in it."""
    what_to_do = advice(error, "check the file system and the permissions")
    return StorageError(f"{path} cannot be read{where}: {error}; {what_to_do}")


def file_size(path: Path) -> int:
    """Return the size of `path` in bytes; a missing or empty file is a `DataError`."""
    try:
        size = path.stat().st_size
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(
            f"{path} does not exist; check the path: a data set is named by its prefix, without `.bin`"
        ) from error
    except OSError as error:
        raise unreadable(path, error) from error
    if size == 0:
        raise damaged(path, "it is empty")
    return size


class Elements(ABC):
    """The integers that a file holds, read in ranges."""

    def __init__(self, path: Path, dtype: np.dtype[Any], count: int) -> None:
        self.path = path
        self.dtype = dtype
        self.count = count

    def __len__(self) -> int:
        return self.count

    @abstractmethod
    def read(self, start: int, count: int) -> Integers:
        """Return `count` elements from `start` on, all of which exist. The result must not be written to."""

    def blocks(self) -> Iterator[Integers]:
        """Yield all elements in blocks."""
        for start in range(0, self.count, BLOCK_SIZE):
            yield self.read(start, min(BLOCK_SIZE, self.count - start))

    def spots(self) -> Iterator[Integers]:
        """Yield a fixed number of short pieces, evenly spread from the first element to the last.

        Of up to SPOT_CHECKS * SPOT_SIZE elements (2^19), none is left out.
        """
        size = min(SPOT_SIZE, self.count)
        for start in spread(self.count - size + 1):
            yield self.read(start, size)

    def sha256(self) -> str:
        """Return the digest of the elements' bytes."""
        digest = hashlib.sha256()
        for block in self.blocks():
            digest.update(np.ascontiguousarray(block).data)
        return digest.hexdigest()

    def in_memory(self) -> Elements:
        """Return the same elements, held in memory."""
        return ArrayElements(self.path, np.array(self.read(0, self.count)))


@final
class ArrayElements(Elements):
    """Elements in an array: in this process's memory, or in a memory map that the operating system pages in."""

    def __init__(self, path: Path, array: Integers) -> None:
        super().__init__(path, array.dtype, len(array))
        self._array = array
        self._array.flags.writeable = False

    @classmethod
    def mapped(cls, path: Path, dtype: np.dtype[Any], *, offset: int = 0, count: int | None = None) -> ArrayElements:
        """Map `count` elements (default: all that fit) from byte `offset` on."""
        available = (file_size(path) - offset) // dtype.itemsize
        count = available if count is None else count
        if count > available:
            raise damaged(path, f"it has room for {available} elements of {dtype} from byte {offset} on, not {count}")
        try:
            with path.open("rb") as file:
                make_room(file.fileno())  # the map keeps a copy of the descriptor
                mapped = np.memmap(file, dtype=dtype, mode="r", offset=offset, shape=(count,))
        except OSError as error:
            what_to_do = advice(error, "set use_mmap to false")
            raise StorageError(f"{path} cannot be memory-mapped: {error}; {what_to_do}") from error
        except ValueError as error:
            raise damaged(path, "it became shorter while it was opened") from error
        return cls(path, np.asarray(mapped))

    def read(self, start: int, count: int) -> Integers:
        """Return a view."""
        return self._array[start : start + count]


def exists(path: Path) -> bool:
    """Return whether there is a file at `path`; a `StorageError` where this is unknown."""
    try:
        return path.exists()
    except OSError as error:
        raise StorageError(f"{path} cannot be looked at: {error}; check the name and the permissions") from error


def spread(count: int) -> list[int]:
    """Return up to `SPOT_CHECKS` numbers of range(count), evenly spread and including the first and the last."""
    return sorted({place * (count - 1) // (SPOT_CHECKS - 1) for place in range(SPOT_CHECKS)})


class TokenDocuments(ABC):
    """Documents of token ids, found by number. Document `index` is the same for ever."""

    def __init__(self, prefix: Path, tokens: Elements, document_count: int, *, max_token: int | None) -> None:
        self.prefix = prefix
        self.document_count = document_count
        self.token_count = len(tokens)
        self.max_token = max_token
        """The largest token id, where the format records it."""
        self._tokens = tokens

    @property
    def dtype(self) -> np.dtype[Any]:
        """Return the integer type in which tokens are stored."""
        return self._tokens.dtype

    def __len__(self) -> int:
        return self.document_count

    def __getitem__(self, index: int) -> Integers:
        """Return the tokens of one document; a negative index counts from the end. Not to be written to."""
        return self.read(index)

    def __iter__(self) -> Iterator[Integers]:
        return (self.read(index) for index in range(self.document_count))

    def read(self, index: int, start: int = 0, stop: int | None = None) -> Integers:
        """Return tokens `start` to `stop` of a document (as slicing understands them), without reading the others."""
        first, size = self._span(self._position(index))
        start, stop, _ = slice(start, stop).indices(size)
        return self._tokens.read(first + start, max(stop - start, 0))

    def size(self, index: int) -> int:
        """Return the number of tokens in one document."""
        return self._span(self._position(index))[1]

    @abstractmethod
    def sizes(self, start: int = 0, stop: int | None = None) -> Integers:
        """Return the number of tokens of documents `start` to `stop` (not negative). Not to be written to.

        The first call checks the whole index; later calls take time and memory in proportion to the range.
        """

    @abstractmethod
    def verify(self) -> None:
        """Check every byte, in a time that grows with the data; any fault is a `DataError`."""

    def fingerprint(self) -> str:
        """Return a short digest of the data's identity, in a time that does not grow with the data.

        It covers spots of the files' present contents (all of a file of up to 2^19 elements), and the digests that the
        format recorded when the files were written. Only `verify` notices other changes.
        """
        digest = hashlib.sha256(f"{self.dtype.name} {self.document_count} {self.token_count}".encode())
        for part in self._identity():
            digest.update(part)
        return digest.hexdigest()[:32]

    def check_vocabulary(self, vocab_size: int) -> None:
        """Refuse documents with tokens outside range(vocab_size).

        The check is exact where the format records the largest token (ours does). Otherwise spots are checked, which
        reveals a foreign tokenizer but not a single bad token: check batches too, or call `verify`.
        """
        if self.max_token is not None:
            smallest, largest = 0, self.max_token
        else:
            smallest, largest = extremes(self._tokens.spots())
        self._refuse_outside(smallest, largest, vocab_size)

    def _refuse_outside(self, smallest: int, largest: int, vocab_size: int) -> None:
        if smallest < 0 or largest >= vocab_size:
            token = smallest if smallest < 0 else largest
            raise DataError(
                f"{self.prefix} contains token {token}, but the vocabulary is 0 to {vocab_size - 1}; tokenize the data "
                "with the tokenizer of this model, or set the vocabulary size to that of the data's tokenizer"
            )

    @abstractmethod
    def _span(self, index: int) -> tuple[int, int]:
        """Return where document `index` (not negative) begins in the tokens, and its size, both checked."""

    @abstractmethod
    def _identity(self) -> Iterator[bytes]:
        """Yield what distinguishes these documents from others of the same type and number."""

    def _position(self, index: int) -> int:
        position = operator.index(index)
        if position < 0:
            position += self.document_count
        if position not in range(self.document_count):
            raise IndexError(f"document {index} does not exist: {self.prefix} holds {self.document_count}")
        return position


def extremes(pieces: Iterator[Integers]) -> tuple[int, int]:
    """Return the smallest and the largest element of all pieces; (0, 0) where there are none."""
    smallest, largest = 0, 0
    for piece in pieces:
        smallest, largest = min(smallest, int(piece.min())), max(largest, int(piece.max()))
    return smallest, largest
