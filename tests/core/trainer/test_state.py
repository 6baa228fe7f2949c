"""Where a run stands, and what it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from scaling.core.errors import CheckpointError
from scaling.core.optimizer.config import AdamWConfig
from scaling.core.trainer.state import NoMetrics, RunIdentity, TrainState, due


def test_a_state_counts_steps_and_samples_and_comes_back() -> None:
    state, restored = TrainState(), TrainState()
    for samples in (8, 8, 16):
        state.advance(samples)
    assert state.as_dict() == {"step": 3, "consumed_samples": 32}
    restored.restore(state.as_dict())
    assert restored == state


@pytest.mark.parametrize("stored", [{}, {"step": 3}, {"step": "many", "consumed_samples": 1}, {"step": None}])
def test_a_malformed_state_is_refused(stored: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="the checkpoint's trainer state is malformed"):
        TrainState().restore(stored)


@pytest.mark.parametrize(
    ("interval", "steps"), [(None, []), (1, [1, 2, 3, 4, 5, 6]), (2, [2, 4, 6]), (5, [5]), (7, [])]
)
def test_what_is_done_every_so_many_steps(interval: int | None, steps: list[int]) -> None:
    assert [step for step in range(1, 7) if due(step, interval)] == steps


def test_an_identity_is_its_settings_and_fingerprints() -> None:
    identity = RunIdentity(AdamWConfig(beta1=0.5), {"data": "abc"})
    assert identity.as_dict()["beta1"] == 0.5
    assert identity.as_dict()["fingerprints"] == {"data": "abc"}


def test_metrics_before_training_are_kept_by_nobody() -> None:
    metrics = NoMetrics()
    metrics.add(1, {"loss": torch.zeros(())})
    metrics.flush()
    metrics.close()
