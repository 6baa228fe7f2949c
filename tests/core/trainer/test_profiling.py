"""The timeline of a run: every rank's actions on one clock, beside what the schedule makes one expect."""

from __future__ import annotations

import json
import logging
import time
from collections import defaultdict
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from scaling.core.checkpoint.checkpointer import Checkpointer
from scaling.core.collectives.observed import observation
from scaling.core.optimizer.config import AdamWConfig
from scaling.core.profiler.clock import HostClock
from scaling.core.profiler.config import ProfilerConfig
from scaling.core.topology.topology import Topology
from scaling.core.trainer.config import TrainerConfig
from scaling.core.trainer.hooks import TrainerHook, TrainerView
from scaling.core.trainer.profiling import ProfilingHook
from scaling.core.trainer.state import RunIdentity
from scaling.core.trainer.trainer import Trainer
from scaling.core.training.learner import Learner
from tests.core.trainer.regression import Metrics, communicator_of
from tests.core.verify.regression import layout, recipe
from tests.distributed import run_distributed
from tests.reference.worlds import connected

ACTIONS = ("forward", "backward", "send", "recv")


@dataclass(frozen=True)
class ShiftedClock(HostClock):
    """The clock of another host: 5 s ahead, and faster by a ten-thousandth."""

    host: str | None = "another host"

    def now(self) -> float:
        """Return its time."""
        return 5.0 + 1.0001 * time.perf_counter()


def train(
    topology: Topology, sizes: dict[str, int], *hooks: TrainerHook, save_dir: Path | None, **options: Any
) -> None:
    """Train three steps with an evaluation and a save after the second."""
    values = {"train_iterations": 3, "eval_interval": 2, "save_interval": 2, "log_interval": 1, "save_dir": save_dir}
    config = TrainerConfig.from_dict({**values, **options})
    Trainer(
        config,
        Learner(replace(recipe(), optimizer=AdamWConfig(zero=True)), layout(**sizes), topology),
        identity=RunIdentity(AdamWConfig()),
        checkpointer=Checkpointer(config.save_dir, communicator=communicator_of(topology)),
        open_metrics=Metrics().open,
        hooks=hooks,
    ).fit()


def profile(rank: int, world_size: int, sizes: dict[str, int], shared_memory: bool, folder: Path) -> None:
    """Record all steps, half of the ranks on another host, so it seems."""
    with connected(**sizes, shared_memory=shared_memory) as topology:
        config = ProfilerConfig(profile_steps=2, profile_start_at_step=2)
        clock = ShiftedClock() if rank >= world_size // 2 else HostClock()
        hook = ProfilingHook(config, topology, folder / "profile.json", clock=clock)
        train(topology, sizes, hook, save_dir=folder / "save")


@pytest.fixture(scope="module")
def timeline(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the timeline of steps 2 and 3 over eight ranks that reach each other through the network."""
    folder = tmp_path_factory.mktemp("eight")
    run_distributed(profile, 8, {"pipe": 2, "data": 2, "model": 2}, False, folder)
    trace: dict[str, Any] = json.loads((folder / "profile.json").read_text())
    return trace


def boxes(trace: dict[str, Any], *, process: int = 0, categories: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """Return the boxes of a process by rows and times, what begins together in the order of the file."""
    found = [event for event in trace["traceEvents"] if event["ph"] == "X" and event["pid"] == process]
    found = [event for event in found if not categories or event["cat"] in categories]
    return sorted(found, key=lambda event: (event["tid"], event["ts"]))


def names_by_step(events: list[dict[str, Any]]) -> dict[tuple[int, int], list[str]]:
    found = defaultdict(list)
    for event in events:
        if "step" in event["args"]:
            found[event["tid"], event["args"]["step"]].append(event["name"])
    return found


def test_no_receive_ends_before_its_send_begins_by_more_than_the_stated_uncertainty(timeline: dict[str, Any]) -> None:
    starts = {event["id"]: event["ts"] for event in timeline["traceEvents"] if event["ph"] == "s" and event["pid"] == 0}
    ends = {event["id"]: event["ts"] for event in timeline["traceEvents"] if event["ph"] == "f" and event["pid"] == 0}
    assert starts.keys() == ends.keys()
    # Two steps of two micro-batches, both ways, in four columns; an evaluation of one or two batches.
    assert len(starts) > 2 * 2 * 2 * 4
    uncertainty = timeline["otherData"]["clock_uncertainty_us"]
    assert 0 < uncertainty < 1e6  # far less than the clocks are apart
    assert all(ends[name] >= starts[name] - uncertainty for name in starts)


def test_simulated_and_measured_order_of_actions_are_equal_on_every_rank(timeline: dict[str, Any]) -> None:
    simulated = names_by_step(boxes(timeline, process=1, categories=ACTIONS))
    measured = names_by_step(boxes(timeline, categories=ACTIONS))
    assert {rank for rank, _ in measured} == set(range(8))
    assert {step for _, step in measured} == {2, 3}
    for (rank, step), names in measured.items():
        assert names == simulated[rank // 4, step]


def test_everything_that_a_rank_does_is_in_its_row_with_one_thing_within_another(timeline: dict[str, Any]) -> None:
    events = boxes(timeline)
    kinds = {(event["tid"], event["cat"]) for event in events if event["tid"] < 8}
    # Ranks with the first or the last stage, here all, wait for data.
    everything = (*ACTIONS, "collective", "optimizer", "data", "evaluation", "checkpoint")
    assert kinds == {(rank, kind) for rank in range(8) for kind in everything}
    for row in {event["tid"] for event in events}:
        around: list[float] = []
        for event in (event for event in events if event["tid"] == row):
            while around and around[-1] <= event["ts"]:
                around.pop()
            assert not around or event["ts"] + event["dur"] <= around[-1], event
            around.append(event["ts"] + event["dur"])


def test_collectives_say_over_which_group_they_are_and_those_under_way_have_rows_of_their_own(
    timeline: dict[str, Any],
) -> None:
    collectives = boxes(timeline, categories=("collective",))
    groups = {(event["args"]["group"], *event["args"]["ranks"]) for event in collectives if event["tid"] % 8 == 5}
    assert {("model", 4, 5), ("data", 5, 7), ("world", *range(8))} <= groups
    assert {event["args"]["operation"] for event in collectives if event["tid"] >= 8} == {
        "reduce_scatter",
        "all_gather",
    }
    names = {
        event["tid"]: event["args"]["name"]
        for event in timeline["traceEvents"]
        if event["name"] == "thread_name" and event["pid"] == 0
    }
    assert names[5] == "rank 5 pipe 1 data 0 context 0 model 1"
    assert names[8 + 5] == "rank 5 communication"
    assert set(names) == {event["tid"] for event in boxes(timeline)}
    assert all(str(event["args"]["operation"]) in event["name"] for event in collectives)


def test_collectives_through_shared_memory_are_seen_where_they_run(tmp_path: Path) -> None:
    run_distributed(profile, 2, {"data": 2}, True, tmp_path)
    trace = json.loads((tmp_path / "profile.json").read_text())
    collectives = boxes(trace, categories=("collective",))
    assert {event["tid"] for event in collectives} == {0, 1}
    inside = [
        event
        for event in collectives
        for step in boxes(trace, categories=("optimizer",))
        if event["tid"] == step["tid"] and step["ts"] <= event["ts"] < step["ts"] + step["dur"]
    ]
    seen = [(event["tid"], event["args"]["operation"]) for event in inside if event["args"]["group"] == "data"]
    assert {(rank, kind) for rank in (0, 1) for kind in ("reduce_scatter", "all_gather")} <= set(seen)
    # Each once: not as what was asked for, and again as what goes through memory.
    assert all(a["ts"] + a["dur"] <= b["ts"] for a, b in pairwise(inside) if a["tid"] == b["tid"])


class Failing(TrainerHook):
    """Fails at a step."""

    def before_step(self, trainer: TrainerView) -> None:
        """Fail."""
        if trainer.state.step == 2:
            raise ValueError


def test_a_window_ends_with_the_training_and_one_behind_it_is_named_at_the_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    topology, output = Topology.single(), tmp_path / "profile.json"
    late = ProfilingHook(ProfilerConfig(profile_steps=2, profile_start_at_step=4), topology, output)
    train(topology, {}, late, save_dir=tmp_path / "save")
    assert "0 of the 2 steps of the timeline are recorded" in caplog.text
    assert not output.exists()
    caplog.clear()
    # From step 3, which was saved, two are left: of this process they are the first and the second.
    short = ProfilingHook(ProfilerConfig(profile_steps=2, profile_start_at_step=2), topology, output)
    train(topology, {}, short, save_dir=tmp_path / "save", train_iterations=5)
    assert "1 of the 2 steps of the timeline are recorded" in caplog.text
    assert "and 2 are left to train" in caplog.text
    assert f"the timeline of 1 steps is in {output}" in caplog.text
    measured = boxes(json.loads(output.read_text()))
    assert {event["args"]["step"] for event in measured if event["cat"] == "forward"} == {5}


def test_after_an_error_nothing_is_written_and_nothing_is_timed_any_more(tmp_path: Path) -> None:
    topology, output = Topology.single(), tmp_path / "profile.json"
    config = ProfilerConfig(profile_steps=9, profile_start_at_step=1, torch_profiler=True)
    with pytest.raises(ValueError, match=r"^$"):
        train(topology, {}, ProfilingHook(config, topology, output), Failing(), save_dir=None)
    assert not output.exists()
    assert observation.by is None
    assert not torch.autograd._profiler_enabled()
