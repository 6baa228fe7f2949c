"""What any layout saves, any layout continues: 64 pairs with the real training program."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.faults.engine import FLOAT64, Settings, Source, launch, layout
from tests.faults.matrix import State, differences

LAYOUTS: Mapping[str, Settings] = {
    "alone": layout(),
    "data 2, ZeRO": layout(data=2),
    "data 2": {**layout(data=2), "optimizer.zero": False},
    "data 4, ZeRO": layout(data=4),
    "pipe 2": layout(pipe=2),
    "model 2": layout(model=2),
    "pipe 2, data 2, ZeRO": layout(pipe=2, data=2),
    "data 2, model 2, sequence-parallel": layout(data=2, model=2, sequence_parallel=True),
}
SAVED, STEPS = 3, 8
"""Saved after step 3; five more follow."""


@dataclass
class Runs:
    """The checkpoint of each layout, the state it holds, and the losses of a run that was never stopped."""

    source: Source
    folder: Path
    states: dict[str, State] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)

    def settings(self, name: str, *changes: Settings) -> dict[str, object]:
        """Return the settings of one layout."""
        return self.source.settings(FLOAT64, LAYOUTS[name], {"trainer.save_interval": None}, *changes)

    def save(self, name: str) -> Path:
        """Return a layout's checkpoint, which is made once."""
        where = self.folder / "saved" / name
        if name not in self.states:
            end = launch(self.settings(name, {"trainer.save_dir": str(where), "trainer.train_iterations": SAVED}))
            assert end.state is not None, end.message
            self.states[name] = end.state
        return where

    def uninterrupted(self) -> list[float]:
        """Return the losses of steps 4 to 8 without a stop, in one process."""
        if not self.losses:
            logs = self.folder / "uninterrupted"
            end = launch(self.settings("alone", {"trainer.train_iterations": STEPS, "logger.log_dir": str(logs)}))
            assert end.status == 0, end.message
            self.losses = losses(logs)[SAVED:]
        return self.losses


def losses(logs: Path) -> list[float]:
    """Return the losses that a run has logged."""
    return [json.loads(line)["training/loss"] for line in (logs / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def runs(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(source, tmp_path_factory.mktemp("pairs"))


def check_pair(saved: str, loaded: str, runs: Runs, logs: Path) -> None:
    changes = {
        "trainer.load_dir": str(runs.save(saved)),
        "trainer.assert_checkpoint_loaded": True,
        "trainer.train_iterations": STEPS,
        "logger.log_dir": str(logs),
    }
    end = launch(runs.settings(loaded, changes))
    assert end.status == 0, end.message
    assert end.loaded is not None
    assert not differences(end.loaded, runs.states[saved])
    assert any(name.startswith("optimizer.exp_avg_sq.") for name in end.loaded)
    assert end.loaded["step"] == SAVED
    assert losses(logs) == pytest.approx(runs.uninterrupted(), rel=1e-10, abs=0)


@pytest.mark.slow
@pytest.mark.parametrize("loaded", LAYOUTS)
@pytest.mark.parametrize("saved", LAYOUTS)
def test_any_layout_continues_exactly_what_any_layout_saved(
    saved: str, loaded: str, runs: Runs, tmp_path: Path
) -> None:
    check_pair(saved, loaded, runs, tmp_path)


def test_another_layout_continues_exactly_what_one_has_saved(runs: Runs, tmp_path: Path) -> None:
    check_pair("pipe 2", "data 2, ZeRO", runs, tmp_path)
