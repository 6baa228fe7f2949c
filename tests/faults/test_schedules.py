"""Runs that change size and are killed on the way consume, step by step, the samples of a run that does neither."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from scaling.core import (
    ExitStatus,
    LaunchContext,
    MicroBatch,
    ParallelModule,
    StepReport,
    TrainerHook,
    TrainerView,
    run_training,
)
from scaling.transformer import train as program
from scaling.transformer.config.root import TransformerConfig
from tests.distributed import run_world
from tests.faults.engine import FLOAT64, TIMEOUT, Settings, Source, Witness, end_of, layout, make_source, nested, texts
from tests.faults.matrix import End, differences
from tests.faults.storage_cases import KILLED

STEPS = 6
ROUNDING = 1e-10
GLOBAL_BATCHES = (24, 40, 42, 56)
"""Between them, each number of data-parallel ranks from 1 to 8 divides one."""
ACCIDENTS = (
    *("data.fetch", "step.before_forward", "step.after_backward", "step.after_optimizer"),
    *("save.before_data", "save.mid_data", "save.after_data", "save.before_manifest", "save.before_rename"),
    *("save.after_rename", "save.during_retention"),
)

Samples = Counter[str]
"""How often each sample was consumed, by a digest of its tokens."""


@dataclass
class Notes(TrainerHook):
    """A hook, and what the model is fed through, that notes in a file which samples each completed step consumed."""

    path: Path
    _samples: list[str] = field(default_factory=list)
    _positions: list[int] = field(default_factory=list)

    def take(self, batch: MicroBatch) -> MicroBatch:
        rows = zip(batch.inputs.token_ids, batch.targets.token_ids, strict=True)
        self._samples += [hashlib.sha256(a.numpy().tobytes() + b.numpy().tobytes()).hexdigest()[:16] for a, b in rows]
        self._positions += batch.inputs.sample_positions.tolist()
        return batch

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Let every micro-batch of a training step pass through `take`."""
        original: Callable[..., Any] = ParallelModule.train_step

        def noting(module: ParallelModule, batches: Iterator[MicroBatch], *args: Any, **options: Any) -> Any:
            return original(module, map(self.take, batches), *args, **options)

        with mock.patch.object(ParallelModule, "train_step", noting):
            yield

    def before_step(self, trainer: TrainerView) -> None:
        self._samples, self._positions = [], []

    def after_step(self, trainer: TrainerView, report: StepReport) -> None:
        line = {"step": trainer.state.step, "samples": self._samples, "positions": self._positions}
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def train_and_note(rank: int, world_size: int, settings: Settings, notes: Path) -> tuple[ExitStatus, Witness]:
    """Be one rank of the training program, which leaves its notes in a folder."""
    witness, noted = Witness(), Notes(notes / f"rank_{rank}.jsonl")
    hooks = partial(run_training, hooks=(witness, noted))
    with noted.taken(), mock.patch.object(program, "run_training", hooks):
        status = program.train(TransformerConfig.from_dict(nested(settings)), LaunchContext.from_environment())
    return status, witness


def launch_and_note(settings: Settings, notes: Path, *, fault: str = "") -> End:
    """Run a training until it ends or is ended."""
    notes.mkdir(parents=True)
    armed = {"SCALING_FAULT": fault} if fault else {}
    ranks = settings["topology.data_parallel_size"]
    return end_of(
        run_world(train_and_note, ranks, settings, notes, timeout=TIMEOUT, grace=0.3, environment=armed),
    )


def consumed(notes: Path, ranks: int, global_batch: int) -> Mapping[int, Samples]:
    """Return what the steps that all ranks completed consumed; none may hold a position twice, or leave one out."""
    lines = [
        {line["step"]: line for line in map(json.loads, path.read_text().splitlines())}
        for path in sorted(notes.iterdir())
    ]
    if len(lines) < ranks:  # one was ended before its first step was
        return {}
    found = {}
    for step in sorted(set.intersection(*(set(one) for one in lines))):
        positions = sorted(position for one in lines for position in one[step]["positions"])
        assert positions == list(range((step - 1) * global_batch, step * global_batch))
        found[step] = Counter(sample for one in lines for sample in one[step]["samples"])
    return found


@dataclass
class Mixture:
    """Two data sets of different size, and what undisturbed runs of each batch size consume and come to."""

    source: Source
    other: Source
    folder: Path
    _undisturbed: dict[int, tuple[Mapping[int, Samples], End]] = field(default_factory=dict)

    def settings(self, *changes: Settings) -> dict[str, Any]:
        """Return the settings of a training on both, in float64; they are gone through more than once."""
        mixed = {
            "data.data_prefixes": [str(self.source.prefix), str(self.other.prefix)],
            "data.blended_dataset.weighted_sampler_alpha": 0.5,
            "data.blended_dataset.shuffle_dataset_indices": True,
            "trainer.train_iterations": STEPS,
        }
        return self.source.settings(FLOAT64, mixed, *changes)

    def undisturbed(self, global_batch: int) -> tuple[Mapping[int, Samples], End]:
        """Return the samples of each step, and the end, of a run in one process."""
        if global_batch not in self._undisturbed:
            notes = self.folder / f"undisturbed_{global_batch}"
            sizes = {"topology.global_batch_size": global_batch, "topology.micro_batch_size": global_batch // 2}
            end = launch_and_note(self.settings(layout(), sizes, {"trainer.save_interval": None}), notes)
            assert end.status == 0, end.message
            self._undisturbed[global_batch] = consumed(notes, 1, global_batch), end
        return self._undisturbed[global_batch]


@pytest.fixture(scope="module")
def mixture(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Mixture:
    folder = tmp_path_factory.mktemp("schedules")
    other = [text.replace("Document", "Paper").replace("counts", "lists") for text in texts(23)]
    return Mixture(source, make_source(folder / "other", other, tokenizer=source.tokenizer), folder)


def divisors(number: int, largest: int) -> list[int]:
    """Return what divides `number`, up to `largest`."""
    return [size for size in range(1, largest + 1) if number % size == 0]


def random_settings(global_batch: int, chance: random.Random) -> dict[str, Any]:
    """Return any way to run: ranks, micro-batches, accumulation, workers, ZeRO, and how often and how to save."""
    ranks = chance.choice(divisors(global_batch, 8))
    per_rank = global_batch // ranks
    workers = chance.choice((0, 0, 1, 2)) if ranks <= 4 else 0  # each is a process
    return {
        **layout(data=ranks),
        "topology.global_batch_size": global_batch,
        "topology.micro_batch_size": chance.choice(divisors(per_rank, per_rank)),
        "optimizer.zero": chance.random() < 0.7,
        "trainer.dataloader_num_workers": workers,
        "trainer.save_interval": chance.choice((1, 2)),
        "trainer.save_async": chance.random() < 0.3,
        "trainer.keep_last_checkpoints": 2,
    }


def check_schedule(number: int, mixture: Mixture, folder: Path) -> None:
    """Run to the end through a few accidents, each time with other sizes."""
    chance = random.Random(number)
    global_batch = GLOBAL_BATCHES[number % len(GLOBAL_BATCHES)]
    wanted, undisturbed = mixture.undisturbed(global_batch)
    assert list(wanted) == list(range(1, STEPS + 1))
    saved = {"trainer.save_dir": str(folder / "checkpoints")}
    known, end = 0, End(KILLED)
    for attempt in range(5):
        settings = mixture.settings(random_settings(global_batch, chance), saved)
        ranks = settings["topology.data_parallel_size"]
        point, rank, passage = chance.choice(ACCIDENTS), chance.randrange(ranks), chance.choice((1, 1, 2, 3))
        action = "term" if point == "step.before_forward" and chance.random() < 0.5 else "kill"
        fault = f"{point}@{rank}:{passage}={action}" if attempt < 4 else ""
        notes = folder / f"attempt_{attempt}"
        end = launch_and_note(settings, notes, fault=fault)
        assert end.status in (0, KILLED, ExitStatus.PREEMPTED), end.message
        found = consumed(notes, ranks, global_batch)
        for step, samples in found.items():
            assert samples == wanted[step], f"step {step} of attempt {attempt}"
        if found:
            steps = list(found)
            assert steps == list(range(steps[0], steps[-1] + 1))
            assert steps[0] <= known + 1, "a step was left out"
            known = max(known, steps[-1])
        if end.status == 0:
            break
    assert end.state is not None, end.message
    assert known == STEPS
    assert undisturbed.state is not None
    assert not differences(end.state, undisturbed.state, within=ROUNDING)


def test_a_run_that_is_killed_and_changes_size_consumes_what_it_would_have_anyway(
    mixture: Mixture, tmp_path: Path
) -> None:
    check_schedule(1, mixture, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(20))
def test_no_schedule_of_sizes_and_kills_consumes_anything_else(number: int, mixture: Mixture, tmp_path: Path) -> None:
    check_schedule(number, mixture, tmp_path)
