"""What the ranks of a world do: record a run, or train in other layouts and say how far they are from it."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist

from scaling.core import LaunchContext, Recipe, Session, Topology, TopologyConfig
from scaling.core.pipeline import compiled
from scaling.core.verify.deviation import Deviation, HeldBoxes, distances, incomplete, relative_difference, shapes
from scaling.core.verify.session import StepNumbers
from scaling.core.verify.shared_tensors import SharedTensors
from tests.distributed import run_distributed


@dataclass(frozen=True)
class Job:
    """A layout to train in."""

    name: str
    recipe: Recipe
    topology: TopologyConfig
    steps: int
    record: bool = False
    """Write down everything instead of comparing with what was written."""


@dataclass
class Run:
    """What one rank saw of a run."""

    held: list[HeldBoxes]
    numbers: list[StepNumbers]
    evaluation: float | None
    gradients: list[list[Deviation]] = field(default_factory=list)
    """By step; empty where the run was recorded."""
    weights: list[Deviation] = field(default_factory=list)
    moved: set[str] = field(default_factory=set)
    """Tensors of which this rank holds bits that are not what they were at first."""


def fail(message: str, *values: object) -> None:
    """Take what would be a warning as a failure: a layer that is not compiled, although that was asked for."""
    raise AssertionError(message % values)


def train(rank: int, world_size: int, port: int, jobs: bytes, directory: str) -> list[Run]:
    """Train in each layout of a world, one after another. `port` is that of a store which somebody else serves."""
    runs = []
    for job in pickle.loads(jobs):
        launch = LaunchContext(
            rank=rank,
            world_size=world_size,
            local_rank=rank,
            master_addr="127.0.0.1",
            master_port=port,
            agent_store=True,
            job_id=job.name,
            launched=True,
        )
        with Topology.connect(job.topology, launch) as topology, mock.patch.object(compiled._log, "warning", fail):
            runs.append(_run(job, topology, Path(directory)))
    return runs


def _run(job: Job, topology: Topology, directory: Path) -> Run:
    session = Session(job.recipe, job.topology, topology)
    session.write("weights", directory / f"initial {job.name}")
    run = Run(session.held_boxes(), [], None)
    assert session.learner.module.compiling.on == (job.topology.compile.value == "on"), session.learner.module.compiling
    first = {tensor.key: [values.clone() for _, values in tensor.parts] for tensor in session.tensors("weights")}
    reference = directory / "reference"
    for step in range(1, job.steps + 1):
        run.numbers.append(session.step(step))
        if job.record:
            session.write("gradients", reference / f"gradients {step}")
        else:
            run.gradients.append(session.compare("gradients", reference / f"gradients {step}"))
    if job.record:
        session.write("weights", reference / f"weights {job.steps}")
    else:
        run.weights = session.compare("weights", reference / f"weights {job.steps}")
    run.moved = {
        tensor.key
        for tensor in session.tensors("weights")
        if not all(torch.equal(was, now) for was, (_, now) in zip(first[tensor.key], tensor.parts, strict=True))
    }
    run.evaluation = session.evaluate()
    session.close()
    return run


@contextmanager
def served_store() -> Iterator[int]:
    """Serve a store for the worlds of a test and return its port."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(minutes=5))
    yield store.port
    del store


@dataclass(frozen=True)
class Reference:
    """A recorded run, and where its tensors are."""

    recipe: Recipe
    directory: Path
    run: Run

    @property
    def steps(self) -> int:
        return len(self.run.numbers)

    @property
    def digest(self) -> str:
        return digest(self.directory, "reference", [self.run])


def record(recipe: Recipe, topology: TopologyConfig, directory: Path, *, steps: int) -> Reference:
    """Train in one process and write everything down."""
    job = Job("reference", recipe, topology, steps, record=True)
    with served_store() as port:
        ((run,),) = run_distributed(train, 1, port, pickle.dumps([job]), str(directory))
    return Reference(recipe, directory, run)


def follow(directory: Path, jobs: Sequence[Job], *, timeout: float = 250) -> dict[str, list[Run]]:
    """Train in the layouts of `jobs`, all of one world size, and return what each rank saw, by job.

    `directory` has what was recorded, and takes what the jobs record.
    """
    (world_size,) = {job.topology.world_size for job in jobs}
    with served_store() as port:
        by_rank = run_distributed(train, world_size, port, pickle.dumps(list(jobs)), str(directory), timeout=timeout)
    return {job.name: [runs[number] for runs in by_rank] for number, job in enumerate(jobs)}


def digest(directory: Path, name: str, runs: Sequence[Run]) -> str:
    """Return the SHA-256 of the gathered initial weights of a run."""
    return SharedTensors(directory / f"initial {name}").digest(shapes(run.held for run in runs))


def differences(reference: Reference, name: str, runs: Sequence[Run]) -> dict[str, tuple[float, str]]:
    """Return how far a run is from the reference, per quantity: the largest relative difference, and where it is."""
    found: dict[str, tuple[float, str]] = {}

    def note(quantity: str, relative: float, where: str) -> None:
        found[quantity] = max(found.get(quantity, (0.0, "")), (relative, where))

    for key, box in incomplete([run.held for run in runs]):
        note("parameters", 1.0, f"no rank has {box} of {key}")
    if shapes(run.held for run in runs) != shapes([reference.run.held]):
        note("parameters", 1.0, "other names or shapes")
    note("initial weights", float(digest(reference.directory, name, runs) != reference.digest), "digest")
    for rank, run in enumerate(runs):
        for step, (ours, theirs) in enumerate(zip(run.numbers, reference.run.numbers, strict=True), start=1):
            where = f"step {step}, rank {rank}"
            note("loss", relative_difference(ours.loss, theirs.loss), where)
            note("gradient norm", relative_difference(ours.gradient_norm, theirs.gradient_norm), where)
            note("weight", relative_difference(ours.weight, theirs.weight), where)
        assert run.evaluation is not None
        assert reference.run.evaluation is not None
        note("evaluation loss", relative_difference(run.evaluation, reference.run.evaluation), f"rank {rank}")
    for step in range(reference.steps):
        for one in distances(deviation for run in runs for deviation in run.gradients[step]):
            note("gradients", one.relative, f"step {step + 1}, {one.key}{list(one.index)} on rank {one.rank}")
        if step == 0:
            found["first gradients"] = found["gradients"]
    for one in distances(deviation for run in runs for deviation in run.weights):
        note("final weights", one.relative, f"{one.key}{list(one.index)} on rank {one.rank}")
    return found
