"""A run of a few seconds in any layout in which one rank does something at a moment of choice."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from unittest import mock

import pytest
from torch import Tensor

from scaling.core.checkpoint import checkpointer
from scaling.core.data.types import MicroBatch
from scaling.core.trainer.hooks import TrainerHook
from scaling.core.trainer.trainer import Trainer
from tests.core.trainer.regression import Points, make_trainer
from tests.reference.worlds import connected

MICRO_BATCHES: Final = 8
"""Of each step, on each data rank."""
MICRO_BATCH_SECONDS: Final = 0.0125
"""A step takes 0.1 s."""

LAYOUTS: Final[Sequence[Mapping[str, int]]] = (
    {"data": 1},
    {"data": 2},
    {"pipe": 2},
    {"model": 2},
    {"data": 4},
    {"pipe": 2, "data": 2},
    {"pipe": 2, "model": 2},
    {"data": 2, "model": 2},
)

Act = Callable[[], None]


def ranks_of(layout: Mapping[str, int]) -> int:
    """Return the number of ranks of a layout."""
    ranks = 1
    for size in layout.values():
        ranks *= size
    return ranks


def cases(moments: Iterable[str], fast: Collection[tuple[str, Mapping[str, int]]], *, fewest: int = 1) -> list[Any]:
    """Return every moment in every layout of at least `fewest` ranks, all but the `fast` ones marked slow."""
    return [
        pytest.param(
            moment, layout, marks=() if (moment, layout) in fast else pytest.mark.slow, id=f"{moment}-{layout}"
        )
        for moment in moments
        for layout in LAYOUTS
        if ranks_of(layout) >= fewest
    ]


class SlowPoints(Points):
    """Takes its time for each micro-batch, and acts while it reads one of them."""

    def __init__(
        self,
        length: int,
        *,
        acts_at: int | None = None,
        act: Act | None = None,
        seconds: float = MICRO_BATCH_SECONDS,
    ) -> None:
        super().__init__(length)
        self.acts_at, self.act = acts_at, act
        self.seconds = seconds
        self.read = 0

    def collate(
        self, samples: Sequence[tuple[Tensor, Tensor]], positions: Sequence[int], valid: Sequence[bool]
    ) -> MicroBatch:
        self.read += 1
        if self.read == self.acts_at and self.act is not None:
            self.act()
        time.sleep(self.seconds)
        return super().collate(samples, positions, valid)


class Acting(TrainerHook):
    """Acts at one of the trainer's moments, the first time it comes, after the first step."""

    def __init__(self, moment: str, act: Act) -> None:
        self.moment, self.act = moment, act

    def _at(self, moment: str, step: int) -> None:
        if self.moment == moment and step >= 1:
            self.moment = "over"
            self.act()

    def before_step(self, trainer: Any) -> None:
        self._at("training", trainer.state.step)

    def before_evaluation(self, trainer: Any) -> None:
        self._at("evaluation", trainer.state.step)

    def before_save(self, trainer: Any) -> None:
        self._at("saving", trainer.state.step)


READS_AT: Final = {"first data": ("training", 1), "data": ("training", MICRO_BATCHES + 3), "evaluation data": ("", 3)}
"""Which data set acts, at which of its micro-batches."""


def train_until(
    moment: str,
    act: Act,
    layout: Mapping[str, int],
    directory: Path,
    *,
    workers: int = 0,
    hooks: Sequence[TrainerHook] = (),
    **options: Any,
) -> Trainer:
    """Train as one rank, of which the last one acts at `moment`.

    `loading` wants a checkpoint in `directory`; `workers` read the data, and act at moments of theirs.
    """
    data = layout.get("data", 1)
    batch = MICRO_BATCHES * data
    with contextlib.ExitStack() as stack:
        topology = stack.enter_context(connected(**layout, global_batch_size=batch, micro_batch_size=1, **options))
        acts = topology.rank == topology.layout.world_size - 1
        if acts and moment == "start-up":
            act()
        if acts and moment == "loading":
            stack.enter_context(mock.patch.object(checkpointer, "execute", side_effect=lambda *arguments: act()))
        which, number = READS_AT.get(moment, ("", 0))
        reads: dict[str, Any] = {"acts_at": number, "act": act} if acts and number else {}
        evaluates = moment.startswith("evaluation")
        trainer, _ = make_trainer(
            topology,
            dataloader_num_workers=workers,
            training=SlowPoints(40 * data, **(reads if which else {})),
            validation=SlowPoints(100 * data, **({} if which else reads)) if evaluates else None,
            save_dir=directory,
            hooks=[*hooks, Acting(moment, act)] if acts else hooks,
            train_iterations=10_000,
            log_interval=10_000,
            save_interval=1 if moment == "saving" else None,
            eval_interval=1 if evaluates else None,
            micro_batch_size=1,
            global_batch_size=batch,
        )
        trainer.fit()
        return trainer


def stay() -> None:
    """Do nothing, for longer than anyone waits."""
    time.sleep(600)


def ask(directory: Path) -> None:
    """Ask this process to leave, and note when."""
    (directory / "asked").write_text(repr(time.monotonic()))
    os.kill(os.getpid(), signal.SIGTERM)


def stay_and_be_asked(directory: Path) -> None:
    """Be asked to leave after a while of doing nothing."""
    threading.Timer(0.5, ask, (directory,)).start()
    stay()
