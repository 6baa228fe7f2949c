"""Deaths of data workers: a few are bad luck, a row of them ends the run with its cause and what to do."""

from __future__ import annotations

import pytest

from scaling.core.data.worker_losses import MAX_IN_A_ROW, RECOVERED_AFTER, WorkerLosses
from scaling.core.errors import ScalingError


def die_after(losses: WorkerLosses, deliveries: int, times: int, error: Exception) -> None:
    for _ in range(times):
        for _ in range(deliveries):
            losses.note_delivery()
        losses.note_death(error)


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (OSError(24, "Too many open files"), r"ulimit -n"),
        (RuntimeError("worker is killed by signal: Bus error"), r"make /dev/shm larger"),
        (EOFError(), r"\(EOFError\); with too little memory lower num_workers"),
    ],
)
def test_deaths_in_a_row_end_the_run(error: Exception, remedy: str) -> None:
    losses = WorkerLosses()
    die_after(losses, 1, MAX_IN_A_ROW - 1, error)
    with pytest.raises(ScalingError, match=rf"died {MAX_IN_A_ROW} times, .*{remedy}"):
        die_after(losses, RECOVERED_AFTER - 1, 1, error)


def test_a_death_now_and_then_is_bad_luck() -> None:
    die_after(WorkerLosses(), RECOVERED_AFTER, 5 * MAX_IN_A_ROW, EOFError())


def test_workers_that_never_deliver_end_the_run_at_once() -> None:
    with pytest.raises(ScalingError, match="as soon as they start"):
        die_after(WorkerLosses(), 0, 2, EOFError())
