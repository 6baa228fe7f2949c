"""Checkpointer: save, find and load checkpoints so that a crash at any moment costs no more than the save it hit."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Final, final

from scaling.core.boxes import GlobalTensor
from scaling.core.checkpoint.base import BaseReference, find_base
from scaling.core.checkpoint.communicator import Alone, Communicator
from scaling.core.checkpoint.folders import Retention
from scaling.core.checkpoint.load import Match, Rules, describe, execute, join_reports, match, report_of
from scaling.core.checkpoint.manifest import json_text
from scaling.core.checkpoint.save import Job, Saver, SaveReport, problem_of, versions
from scaling.core.checkpoint.search import Check, Search, StoredCheckpoint, WeightsOnly, accept_any, find_newest
from scaling.core.checkpoint.share import plan_share
from scaling.core.checkpoint.staging import Staging
from scaling.core.errors import CheckpointError, ScalingError, StorageError
from scaling.core.storage.json_values import Json

MAX_FILE_BYTES: Final = 4 * 2**30
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Loaded:
    """The outcome of loading, the same on all ranks."""

    path: Path
    step: int
    scalars: Mapping[str, Json]
    missing: tuple[str, ...]
    """Tensors that kept their values because they are not stored (and were allowed to be missing)."""
    unexpected: tuple[str, ...]
    """Stored tensors that were not read (and were allowed to be there, or ignored)."""
    absent: tuple[str, ...] = ()
    """Optional tensors that kept their values because they are not stored or are ignored."""


@final
class Checkpointer:
    """Checkpoints, saved into and loaded from directories that all ranks share.

    All methods are collective: every rank calls them in the same order. With `asynchronous`, `save` copies the tensors
    to host memory and returns; a thread writes them. `save_dir` None turns saving off. `information` is stored for
    people to read, for example the layout.
    """

    def __init__(
        self,
        save_dir: Path | None,
        *,
        communicator: Communicator | None = None,
        retention: Retention | None = None,
        asynchronous: bool = False,
        information: Mapping[str, Json] | None = None,
        max_file_bytes: int = MAX_FILE_BYTES,
    ) -> None:
        self.save_dir = save_dir
        self.failures = 0
        """Number of saves that have failed since the last one that succeeded."""
        self.last_report: SaveReport | None = None
        """How the last finished save went."""
        self._ranks = communicator or Alone()
        self._retention = retention or Retention()
        self._information = {**versions(), "ranks": self._ranks.world_size, **(information or {})}
        self._max_file_bytes = max_file_bytes
        self._staging = Staging() if asynchronous else None
        self._thread: Thread | None = None
        self._background: SaveReport | None = None

    def save(
        self, step: int, tensors: Iterable[GlobalTensor], scalars: Mapping[str, Json], *, packed: bool = False
    ) -> Path | None:
        """Save the tensors that the ranks own as the checkpoint of `step`; the `scalars` of rank 0 are stored.

        `packed` stores small tensors together, which saves space where most tensors are small.

        Returns the step folder; None where the save continues in the background or there is no `save_dir`. A failure
        raises the same error on all ranks: `StorageError` where writing failed (training may continue: earlier
        checkpoints are untouched, another save may succeed), `CheckpointError` where the tensors do not fit together.
        The `StorageError` of a background save is counted in `failures`, and logged by the next `save` or raised by
        `wait`.
        """
        self._settle()
        if self.save_dir is None:
            return None
        saver = Saver(self.save_dir, self._ranks, self._retention, self._information, self._max_file_bytes)
        job = self._job(step, tensors, scalars, packed=packed)
        if self._staging is None:
            report = self._count(saver.run(job))
            if report.error is not None:
                raise report.error
            return report.path
        self._thread = Thread(target=self._run, args=(saver, job), name=f"save-step-{step}", daemon=True)
        self._thread.start()
        return None

    def wait(self) -> SaveReport | None:
        """Wait for the background save; raise its error if it failed. Returns its report, None without a save."""
        report = self._join()
        if report is not None and report.error is not None:
            raise report.error
        return report

    def find(
        self,
        directory: Path | None = None,
        *,
        weights_only: bool | WeightsOnly = False,
        check: Check = accept_any,
    ) -> Search:
        """Verify the checkpoints of a directory (or one step folder; default: `save_dir`) from the newest on.

        All ranks share the reading and get the same result: the newest checkpoint that is complete and intact, and the
        rejected ones with the reasons. An empty or absent directory is not an error. `weights_only` skips the reading
        of optimizer states that will not be loaded; problems that `check` finds in a manifest are reasons to reject the
        checkpoint.
        """
        self._settle()
        where = self.save_dir if directory is None else directory
        if where is None:
            return Search(Path(), None, ())
        return find_newest(where, self._ranks, weights_only=weights_only, check=check)

    def find_base(self, reference: BaseReference, elsewhere: Path | None = None) -> StoredCheckpoint:
        """Verify the base of a fine-tuning, as `scaling.core.find_base` does. Collective."""
        self._settle()
        return find_base(reference, elsewhere, self._ranks)

    def load(
        self,
        source: StoredCheckpoint | Path,
        tensors: Iterable[GlobalTensor],
        *,
        allowed_missing: Sequence[str] = (),
        allowed_unexpected: Sequence[str] = (),
        ignore: Sequence[str] = (),
        optional: Collection[str] | None = None,
        grown: Sequence[str] = (),
        masters: str | None = None,
    ) -> Loaded:
        """Copy stored values into this rank's views of `tensors`, reading only the slices it holds.

        A path is verified first, as by `find`. Differences that the regular expressions do not allow are reported
        together in one `CheckpointError` on all ranks, before anything is overwritten. Floating-point types are
        converted. `masters` is the prefix of wider copies that weights are converted from and to; for `masters`,
        `optional` and `grown`, see `Rules`.
        """
        self._settle()
        rules = Rules(allowed_missing, allowed_unexpected, ignore, optional, grown, masters)
        stored = self.find(source).require() if isinstance(source, Path) else source
        try:
            matched = match(stored.manifest, tensors, rules)
        except Exception as error:  # reported to all ranks, so that none waits for this one
            matched = Match(problem=problem_of(error)["text"])
        reports = self._ranks.gather(report_of(matched, stored.manifest))
        joined = self._ranks.broadcast(None if reports is None else join_reports(reports, stored.manifest, rules))
        if (message := describe(joined, stored.path, stored.manifest)) is not None:
            raise CheckpointError(message)
        problem = None
        try:
            execute(stored.path, stored.manifest, matched.reads)
        except Exception as error:  # voted on, so that all ranks raise the same error
            problem = problem_of(error)["text"]
        self._agree(problem, f"{stored.path} could not be read")
        return Loaded(
            path=stored.path,
            step=stored.step,
            scalars=stored.manifest.scalars,
            missing=tuple(joined["accepted_missing"]),
            unexpected=tuple(joined["accepted_unexpected"]),
            absent=tuple(joined["absent"]),
        )

    def _job(self, step: int, tensors: Iterable[GlobalTensor], scalars: Mapping[str, Json], *, packed: bool) -> Job:
        try:
            share = plan_share(tensors, self._max_file_bytes, packed=packed)
            text = json_text(scalars, "the scalars") if self._ranks.rank == 0 else "{}"
            if self._staging is None:
                return Job(step, share, text)
            return Job(step, self._staging.copy(share), text, ready=self._staging.wait)
        except Exception as error:  # voted on, so that no rank waits for this one
            return Job(step, problem=problem_of(error))

    def _run(self, saver: Saver, job: Job) -> None:
        started = time.monotonic()
        try:
            self._background = saver.run(job)
        except Exception as error:  # raised later, in the thread that waits for the save
            failure = (
                error if isinstance(error, ScalingError) else ScalingError(f"step {job.step} was not saved: {error!r}")
            )
            self._background = SaveReport(job.step, None, failure, time.monotonic() - started, 0)

    def _join(self) -> SaveReport | None:
        """Wait for the background save and return its report, None where no save was running."""
        if self._thread is None:
            return None
        self._thread.join()
        self._thread = None
        report, self._background = self._background, None
        return None if report is None else self._count(report)

    def _settle(self) -> None:
        """Wait for the background save, so that operations do not overlap; raise only what the next cannot mend."""
        report = self._join()
        if report is None or report.error is None:
            return
        if not isinstance(report.error, StorageError):
            raise report.error
        if self._ranks.rank == 0:
            _log.warning("%s", report.error)

    def _count(self, report: SaveReport) -> SaveReport:
        self.last_report = report
        self.failures = 0 if report.error is None else self.failures + 1
        return report

    def _agree(self, problem: str | None, what: str) -> None:
        """Raise a `StorageError` on all ranks if one of them has a problem."""
        problems = self._ranks.gather(problem)
        named = None if problems is None else [f"rank {rank}: {text}" for rank, text in enumerate(problems) if text]
        if found := self._ranks.broadcast(named):
            raise StorageError(f"{what}: {'; '.join(found)}")
