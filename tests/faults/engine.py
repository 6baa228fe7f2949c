"""Run the real training program on a tiny model in worlds of test workers, and bring its ranks' ends together."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from math import prod
from pathlib import Path
from typing import Any
from unittest import mock

from scaling.core import ExitStatus, LaunchContext, TrainerHook, TrainerView, run_training
from scaling.core.runner.outcome import ProcessEnd, outcome
from scaling.core.runner.report import Report
from scaling.transformer import train as program
from scaling.transformer.config.root import TransformerConfig
from scaling.transformer.data.shards import TokenizeOptions
from scaling.transformer.data.tokenize import tokenize_files
from scaling.transformer.data.tokenizer import TOKENIZER_FILE, train_tokenizer
from tests.distributed import Outcome, run_world
from tests.faults.matrix import End, State, Unexpected, contents
from tests.reference.training import Part, join, parts_of

Settings = Mapping[str, Any]
"""Dotted names with values; None as a value removes a setting."""

VOCABULARY = 300
STEPS = 6
SAVED = (2, 4, 6)
"""Steps at which the undisturbed run saves."""
TIMEOUT = 100.0
"""Seconds after which a world counts as hanging; its ranks wait longer for each other."""

TINY: Settings = {
    "transformer_architecture.vocab_size": VOCABULARY,
    "transformer_architecture.hidden_size": 16,
    "transformer_architecture.num_layers": 2,
    "transformer_architecture.num_attention_heads": 4,
    "transformer_architecture.attention_num_kv_heads": 2,
    "transformer_architecture.mlp_type": "swiglu",
    "transformer_architecture.mlp_factor": 2,
    "transformer_architecture.norm_type": "rms",
    "transformer_architecture.sequence_length": 16,
    "topology.device": "cpu",
    "topology.global_batch_size": 4,
    "topology.micro_batch_size": 1,
    "topology.process_group_timeout_seconds": 200,
    "optimizer.zero": True,
    "learning_rate_scheduler.learning_rate": 0.01,
    "learning_rate_scheduler.learning_rate_warmup_steps": 2,
    "trainer.train_iterations": STEPS,
    "trainer.save_interval": 2,
    "trainer.gc_interval": 0,
}
FLOAT64: Settings = {"transformer_architecture.precision": "float64"}


def layout(data: int = 1, pipe: int = 1, model: int = 1, **topology: Any) -> dict[str, Any]:
    """Return the settings of a layout."""
    return {
        "topology.data_parallel_size": data,
        "topology.pipe_parallel_size": pipe,
        "topology.model_parallel_size": model,
        **{f"topology.{name}": value for name, value in topology.items()},
    }


TWO = layout(data=2)
"""The layout of most cases: two ranks, each with half of the optimizer's state."""


def nested(settings: Settings) -> dict[str, Any]:
    """Return dotted names as sections."""
    sections: dict[str, Any] = {}
    for path, value in settings.items():
        *outer, name = path.split(".")
        section = sections
        for part in outer:
            section = section.setdefault(part, {})
        section[name] = value
    return sections


@dataclass
class Witness(TrainerHook):
    """A hook that keeps what the trainer holds before the first step, and at the end."""

    first: list[Part] | None = None
    last: list[Part] | None = None
    first_position: dict[str, int] = field(default_factory=dict)
    last_position: dict[str, int] = field(default_factory=dict)

    def before_step(self, trainer: TrainerView) -> None:
        if self.first is None:
            self.first, self.first_position = parts_of(trainer.learner.global_tensors()), trainer.state.as_dict()

    def on_exit(self, trainer: TrainerView, error: BaseException | None) -> None:
        self.last, self.last_position = parts_of(trainer.learner.global_tensors()), trainer.state.as_dict()


@contextmanager
def limited_files(size: int | None) -> Iterator[None]:
    """Let no file grow beyond `size` bytes: the kernel's EFBIG."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (before[0] if size is None else size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def train_as_rank(
    rank: int, world_size: int, settings: Settings, changes: Mapping[int, Settings], file_limits: Mapping[int, int]
) -> tuple[ExitStatus, Witness]:
    """Be one rank of the training program; `changes` and `file_limits` are for single ranks."""
    witness = Witness()
    sections = nested({**settings, **changes.get(rank, {})})
    with (
        limited_files(file_limits.get(rank)),
        mock.patch.object(program, "run_training", partial(run_training, hooks=(witness,))),
    ):
        status = program.train(TransformerConfig.from_dict(sections), LaunchContext.from_environment())
    return status, witness


def launch(
    settings: Settings,
    *,
    fault: str = "",
    changes: Mapping[int, Settings] | None = None,
    file_limits: Mapping[int, int] | None = None,
    environment: Mapping[str, str] | None = None,
) -> End:
    """Run a training, and return how its launcher would end: a rank that fails takes the others with it."""
    given = {name: value for name, value in settings.items() if value is not None}
    world_size = prod(given.get(f"topology.{axis}_parallel_size", 1) for axis in ("data", "pipe", "model"))
    armed = {"SCALING_FAULT": fault} if fault else {}
    outcomes = run_world(
        train_as_rank,
        world_size,
        given,
        changes or {},
        file_limits or {},
        timeout=TIMEOUT,
        grace=0.3,
        environment={**armed, **(environment or {})},
    )
    return end_of(outcomes)


def main_as_rank(rank: int, world_size: int, arguments: list[str]) -> tuple[ExitStatus, Witness]:
    """Be one rank of the training program as it is started from a command line."""
    return program.main(arguments), Witness()


def launch_file(path: Path) -> End:
    """Start the program with a configuration file, in one process."""
    return end_of(run_world(main_as_rank, 1, [str(path)], timeout=TIMEOUT, grace=0.3))


def end_of(outcomes: list[Outcome]) -> End:
    """Join the ends of the ranks."""
    hung = [one.report for one in outcomes if one.report.startswith("was not done")]
    if hung:
        return End(status=ExitStatus.HANG, message=hung[0], hung=True)
    if not any(one.report for one in outcomes):
        witnesses: list[Witness] = [one.value[1] for one in outcomes]
        return End(
            status=int(max(one.value[0] for one in outcomes)),
            state=_state([(one.last or [], one.last_position) for one in witnesses]),
            loaded=_state([(one.first or [], one.first_position) for one in witnesses]),
        )
    together = outcome([_process_end(rank, one) for rank, one in enumerate(outcomes)])
    return End(status=int(together.status), message=together.explain())


def _process_end(rank: int, one: Outcome) -> ProcessEnd:
    if one.error is not None:
        report = Report.of(one.error)
        return ProcessEnd(rank=rank, exit_code=report.status, report=report, time=one.time)
    if one.exit_code is not None:
        return ProcessEnd(rank=rank, exit_code=one.exit_code, time=one.time)
    stopped = bool(one.report)
    return ProcessEnd(rank=rank, exit_code=1 if stopped else 0, time=one.time, stopped=stopped)


def _state(held: list[tuple[list[Part], dict[str, int]]]) -> State:
    """Return whole tensors and the position; ranks must agree on the position."""
    positions = [position for _, position in held]
    if any(position != positions[0] for position in positions):
        raise Unexpected(f"the ranks stand at different positions: {positions}")
    return {**join([parts for parts, _ in held]), **positions[0]}


@dataclass(frozen=True)
class Source:
    """Data and the undisturbed run on it, made once for all cases."""

    folder: Path

    @property
    def prefix(self) -> Path:
        return self.folder / "corpus"

    @property
    def tokenizer(self) -> Path:
        return self.folder / "tokenizer.json"

    def settings(self, *changes: Settings) -> dict[str, Any]:
        """Return the settings of a training on this data."""
        merged: dict[str, Any] = {
            **TINY,
            "transformer_architecture.vocab_file": str(self.tokenizer),
            "data.data_prefixes": [str(self.prefix)],
        }
        for change in changes:
            merged |= change
        return merged


def texts(count: int = 60) -> list[str]:
    """Return documents of different lengths."""
    return [f"Document {number} counts {' and '.join(map(str, range(number % 11)))}." for number in range(count)]


def make_source(folder: Path, documents: list[str] | None = None, *, tokenizer: Path | None = None) -> Source:
    """Train a tokenizer, if none is given, and tokenize a small corpus, as the commands do."""
    source = Source(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lines = texts() if documents is None else documents
    if tokenizer is None:
        train_tokenizer(lines, VOCABULARY).save(source.tokenizer)
    else:
        shutil.copy(tokenizer, source.tokenizer)
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in lines))
    tokenize_files([folder / "text.jsonl"], source.prefix, TokenizeOptions(source.tokenizer))
    return source


@dataclass
class Undisturbed:
    """A run that nothing happened to: its end, and its checkpoints of `SAVED`."""

    source: Source
    changes: Settings
    save_dir: Path
    end: End
    _at: dict[int, State] = field(default_factory=dict)

    @classmethod
    def run(cls, source: Source, save_dir: Path, *changes: Settings) -> Undisturbed:
        merged = {name: value for change in changes for name, value in change.items()}
        end = launch(source.settings(merged, {"trainer.save_dir": str(save_dir)}))
        assert end.status == 0, end.message
        return cls(source, merged, save_dir, end)

    def at(self, step: int) -> State:
        """Return the state after a step: that of a run which ends there."""
        if step not in self._at:
            ending = {"trainer.train_iterations": step, "trainer.save_interval": None}
            end = launch(self.source.settings(self.changes, ending))
            assert end.state is not None, end.message
            self._at[step] = end.state
        return self._at[step]


@dataclass
class Scene:
    """Where one case is played: a folder of its own, and a run that is compared with an undisturbed one."""

    folder: Path
    undisturbed: Undisturbed
    wide: Undisturbed
    """The same run in float64."""
    expected: State = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    """Names in the folder that may be written all the same."""
    _before: dict[str, str] | None = None

    def __post_init__(self) -> None:
        self.expected = self.expected or self.undisturbed.end.state or {}

    @property
    def source(self) -> Source:
        return self.undisturbed.source

    @property
    def save_dir(self) -> Path:
        return self.folder / "checkpoints"

    def step(self, number: int) -> Path:
        return self.save_dir / f"global_step{number}"

    def settings(self, *changes: Settings) -> dict[str, Any]:
        """Return the settings of the undisturbed run, saved into this scene's folder."""
        return self.source.settings(self.undisturbed.changes, {"trainer.save_dir": str(self.save_dir)}, *changes)

    def undisturbed_at(self, step: int) -> State:
        """Return what the undisturbed run held after a step."""
        return self.undisturbed.at(step)

    def use(self, undisturbed: Undisturbed) -> None:
        """Compare with another undisturbed run."""
        self.undisturbed, self.expected = undisturbed, undisturbed.end.state or {}

    def resume_from(self, *steps: int) -> None:
        """Put checkpoints of the undisturbed run into this scene's folder."""
        self.save_dir.mkdir(exist_ok=True)
        for step in steps:
            shutil.copytree(self.undisturbed.save_dir / f"global_step{step}", self.step(step))
        (self.save_dir / "latest").write_text(f"global_step{max(steps)}")
        shutil.copy(self.source.tokenizer, self.save_dir / TOKENIZER_FILE)

    def run(self, *changes: Settings, **options: Any) -> End:
        """Train, to the end if nothing prevents it."""
        return launch(self.settings(*changes), **options)

    def finish(self, *changes: Settings) -> End:
        """Train to the end without a fault; nothing of an earlier attempt may be left beside the checkpoints."""
        end = self.run(*changes)
        if end.status == 0:
            left = [path.name for path in self.save_dir.iterdir() if path.name.startswith(".")]
            self.require(not left, f"left behind: {left}")
        return end

    def watch(self) -> None:
        """From here on, nothing may be written."""
        self._before = contents(self.folder, without=("logs", *self.ignored))

    def written(self) -> list[str]:
        """Return what has been written, changed or removed since `watch`."""
        if self._before is None:
            raise Unexpected("the case does not say from when on nothing may be written")
        now = contents(self.folder, without=("logs", *self.ignored))
        names = sorted(now.keys() | self._before.keys())
        return [name for name in names if now.get(name) != self._before.get(name)]

    def forget(self, path: Path) -> None:
        """Do not count what the case itself does to a file."""
        self.ignored = (*self.ignored, path.name)
        self._before = {name: digest for name, digest in (self._before or {}).items() if name != path.name}

    def require(self, holds: bool, otherwise: str) -> None:
        """Fail the case where something on the way is not as it has to be."""
        if not holds:
            raise Unexpected(otherwise)
