"""How the ranks of a job agree on a checkpoint: small JSON values travel to rank 0 and back over a key-value store.

A store is used instead of a process group because an asynchronous save votes in a thread while the training thread runs
its own collectives, and because a store works before and after the process groups exist.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Final, Protocol, final

from scaling.core.errors import ScalingError
from scaling.core.waiting import votes

CHUNK_BYTES: Final = 2**20
"""Largest value put into a store at once; TCPStore drops the connection above 8 MiB."""

_SHORTEST_PAUSE: Final = 0.0005
_LONGEST_PAUSE: Final = 0.05
"""Seconds between two looks at the store."""


class Communicator(Protocol):
    """The operations by which ranks agree. All ranks call the same methods in the same order; values are JSON."""

    @property
    def rank(self) -> int:
        """Return the rank of this process."""

    @property
    def world_size(self) -> int:
        """Return the number of processes."""

    def gather(self, value: Any) -> list[Any] | None:
        """Return the values of all ranks, in rank order, on rank 0, None on the others. Collective."""

    def broadcast(self, value: Any) -> Any:
        """Return the value of rank 0. Collective."""


@final
class Alone:
    """The communicator of a single process."""

    rank = 0
    world_size = 1

    def gather(self, value: Any) -> list[Any]:
        """Return the value in a list."""
        return [value]

    def broadcast(self, value: Any) -> Any:
        """Return the value."""
        return value


class Store(Protocol):
    """The part of `torch.distributed.Store` that is used."""

    def set(self, key: str, value: str, /) -> None:
        """Store a value."""

    def get(self, key: str, /) -> bytes:
        """Return the value of an existing key."""

    def check(self, keys: list[str], /) -> bool:
        """Return whether all keys exist."""

    def delete_key(self, key: str, /) -> bool:
        """Remove a key."""


@final
class StoreCommunicator:
    """A communicator over a store that all ranks share (TCPStore, FileStore, HashStore, or a PrefixStore of one).

    `prefix` must belong to this communicator alone within the store. If a rank does not take part within `timeout`, the
    ranks that wait for it raise a `ScalingError`. Waiting polls the store, because a blocking `get` would lock it for
    the training thread.
    """

    def __init__(
        self,
        store: Store,
        rank: int,
        world_size: int,
        *,
        prefix: str = "checkpoint",
        timeout: timedelta = timedelta(minutes=30),
    ) -> None:
        self.rank = rank
        self.world_size = world_size
        self._store = store
        self._prefix = prefix
        self._timeout = timeout
        self._round = 0
        self._delivered: list[str] = []

    def gather(self, value: Any) -> list[Any] | None:
        """Return the values of all ranks, in rank order, on rank 0, None on the others. Collective."""
        self._round += 1
        with _store_errors():
            if self.rank:
                self._put(self._key(self.rank), value)
                return None
            values = [value]
            for rank in range(1, self.world_size):
                values.append(self._take(self._key(rank), f"rank {rank}"))
                self._remove(self._key(rank))
            for key in self._delivered:  # everyone has answered since, so everyone has read these
                self._remove(key)
            self._delivered.clear()
            return values

    def broadcast(self, value: Any) -> Any:
        """Return the value of rank 0. Collective."""
        self._round += 1
        with _store_errors():
            if self.rank:
                return self._take(self._key(0), "rank 0")
            if self.world_size > 1:
                self._put(self._key(0), value)
                self._delivered.append(self._key(0))
            return value

    def _key(self, rank: int) -> str:
        return f"{self._prefix}/{self._round}/{rank}"

    def _put(self, key: str, value: Any) -> None:
        text = json.dumps(value, separators=(",", ":"))
        starts = range(0, len(text), CHUNK_BYTES)
        for number, start in enumerate(starts):
            self._store.set(f"{key}/{number}", text[start : start + CHUNK_BYTES])
        self._store.set(key, str(len(starts)))

    @votes
    def _take(self, key: str, whom: str) -> Any:
        deadline = time.monotonic() + self._timeout.total_seconds()
        pause = _SHORTEST_PAUSE
        while not self._store.check([key]):
            if time.monotonic() > deadline:
                raise ScalingError(
                    f"{whom} did not take part in saving or loading a checkpoint within {self._timeout}: it has died "
                    "or hangs; see its log"
                )
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
        count = int(self._store.get(key))
        return json.loads(b"".join(self._store.get(f"{key}/{number}") for number in range(count)))

    def _remove(self, key: str) -> None:
        for number in range(int(self._store.get(key))):
            self._store.delete_key(f"{key}/{number}")
        self._store.delete_key(key)


@contextmanager
def _store_errors() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # every store of torch raises this when its server is gone
        raise ScalingError(
            f"the store that connects the ranks does not answer ({error}): its process has died"
        ) from error
