"""Count dead data workers, and decide when their deaths are no longer bad luck but a fault of the run's setup."""

from __future__ import annotations

import logging
import resource
from typing import Final, final

from scaling.core.errors import ScalingError

_log = logging.getLogger(__name__)

MAX_IN_A_ROW: Final = 5
"""This many deaths in a row end the run: each costs seconds, and to continue like that is a hundred times too slow."""
RECOVERED_AFTER: Final = 200
"""A death that comes at least this many micro-batches after the last one begins a new row."""

_OPEN_FILES: Final = ("Too many open files", "ancdata")  # the latter: descriptors that were sent and did not arrive
_SHARED_MEMORY: Final = ("shared memory", "Bus error", "No space left")


@final
class WorkerLosses:
    """A count of the deaths of data workers, those of the training set and of each evaluation together."""

    def __init__(self) -> None:
        self._in_a_row = 0
        self._delivered = RECOVERED_AFTER

    def note_delivery(self) -> None:
        """Note that a micro-batch arrived."""
        self._delivered += 1

    def note_death(self, error: Exception) -> None:
        """Log a death that may be bad luck; where it cannot be, raise a `ScalingError` that says what to do."""
        self._in_a_row = self._in_a_row + 1 if self._delivered < RECOVERED_AFTER else 1
        cause = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        if self._in_a_row > 1 and self._delivered == 0:
            raise ScalingError(f"data workers die as soon as they start ({cause}); {_remedy(cause)}") from error
        if self._in_a_row >= MAX_IN_A_ROW:
            raise ScalingError(
                f"data workers died {self._in_a_row} times, each within {RECOVERED_AFTER} micro-batches of the time "
                f"before ({cause}); {_remedy(cause)}"
            ) from error
        self._delivered = 0
        _log.warning("a data worker died (%s); new workers go on where it stopped", cause)


def _remedy(cause: str) -> str:
    fewer = "lower num_workers or prefetch_factor"
    if any(word in cause for word in _OPEN_FILES):
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return f"a process may open {limit} files (ulimit -n): raise that limit, or {fewer}"
    if any(word in cause for word in _SHARED_MEMORY):
        return f"make /dev/shm larger (a container's --shm-size), or {fewer}"
    return f"with too little memory {fewer}; set num_workers to 0 to see an error of the data set itself"
