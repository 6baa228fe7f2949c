"""The duration of a step that is logged: the mean over the steps since the last log, without evaluations and saves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

from scaling.core.trainer import trainer as module
from tests.core.trainer.regression import Points, make_trainer


@pytest.mark.parametrize("steps", [5, 8])
def test_a_logged_duration_is_that_of_a_step_however_many_there_were(steps: int, tmp_path: Path) -> None:
    """The clock stands still but for two seconds a step, and a hundred for an evaluation or a save."""
    now = [50.0]

    def taking(seconds: float, call: Callable[..., Any]) -> Callable[..., Any]:
        def slow(*arguments: Any, **options: Any) -> Any:
            now[0] += seconds
            return call(*arguments, **options)

        return slow

    with mock.patch.object(module, "time", SimpleNamespace(perf_counter=lambda: now[0])):
        trainer, metrics = make_trainer(
            train_iterations=steps,
            log_interval=3,
            validation=Points(8),
            eval_interval=1,  # between two logs too
            save_dir=tmp_path,
            save_interval=2,
            tokens_per_sample=5,
        )
        now[0] += 1000  # what comes before the loop belongs to no step
        with (
            mock.patch.object(trainer.learner, "step", taking(2, trainer.learner.step)),
            mock.patch.object(trainer.learner, "evaluate", taking(100, trainer.learner.evaluate)),
            mock.patch.object(trainer.checkpointer, "save", taking(100, trainer.checkpointer.save)),
        ):
            trainer.fit()
    assert metrics.series("training/step_duration") == dict.fromkeys([*range(3, steps, 3), steps], 2.0)
    assert set(metrics.series("training/tokens_per_second").values()) == {8 * 5 / 2}
