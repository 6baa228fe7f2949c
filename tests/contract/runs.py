"""What the ranks of a world do: record a run, or train the same run in other layouts and say how far they are from it."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from scaling.core import LaunchContext, Recipe, Session, Topology, TopologyConfig
from scaling.core.topology.base_store import serve_store
from scaling.core.verify.deviation import Deviation, Held
from scaling.core.verify.session import StepNumbers

Patch = AbstractContextManager[Any]


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

    held: list[Held]
    numbers: list[StepNumbers]
    evaluation: float | None
    gradients: list[list[Deviation]] = field(default_factory=list)
    """By step; empty where the run was recorded."""
    weights: list[Deviation] = field(default_factory=list)


def train(rank: int, world_size: int, port: int, jobs: bytes, directory: str, mutation: str | None = None) -> list[Run]:
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
        with Topology.connect(job.topology, launch) as topology:
            runs.append(_run(job, topology, Path(directory)))
    return runs


def _run(job: Job, topology: Topology, directory: Path) -> Run:
    session = Session(job.recipe, job.topology, topology)
    session.write("weights", directory / f"initial {job.name}")
    run = Run(session.held(), [], None)
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
    run.evaluation = session.evaluate()
    session.close()
    return run


@contextmanager
def served_store() -> Iterator[int]:
    """Serve a store for the worlds of a test and return its port."""
    store = serve_store("127.0.0.1", 0, timeout=timedelta(minutes=5), setting="MASTER_PORT")
    yield store.port
    del store
