"""The packages that a configuration's sinks need, on the ranks that write to them."""

from __future__ import annotations

from pathlib import Path

import pytest

from scaling.core.logging import packages
from scaling.core.logging.config import LoggerConfig, TensorboardRanksConfig
from scaling.core.logging.packages import is_chosen, missing_logger_packages

ALL = LoggerConfig(
    log_dir=Path("runs"),
    use_tensorboard=True,
    tensorboard_ranks=TensorboardRanksConfig(pipe_parallel_rank=1),
    use_wandb=True,
    wandb_ranks=[2, 3],
    use_trackio=True,
)


@pytest.fixture
def _without_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "find_spec", {"torch": object()}.get)


def missing(config: LoggerConfig, rank: int | None) -> list[str]:
    return [problem.path.removeprefix("logger.use_") for problem in missing_logger_packages(config, rank)]


@pytest.mark.usefixtures("_without_packages")
def test_a_rank_lacks_only_what_it_writes_with() -> None:
    assert missing(ALL, None) == ["tensorboard", "wandb", "trackio"]
    assert missing(ALL, 0) == ["tensorboard", "trackio"]  # whose position may be the one that is named
    assert missing(ALL, 1) == ["tensorboard"]
    assert missing(ALL, 2) == ["tensorboard", "wandb"]
    assert missing(LoggerConfig(), None) == []
    assert missing(LoggerConfig(use_tensorboard=True), None) == []  # without a folder nothing is written


def test_what_is_installed_is_not_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "find_spec", lambda name: object())
    assert missing(ALL, None) == []


def test_ranks_are_named_by_list_or_position() -> None:
    assert [is_chosen(None, rank) for rank in (0, 1)] == [True, False]
    assert [is_chosen([1], rank) for rank in (0, 1)] == [False, True]
    first_stage = TensorboardRanksConfig(pipe_parallel_rank=0)
    assert is_chosen(first_stage, 5, {"pipe": 0, "data": 1, "model": 2})
    assert not is_chosen(first_stage, 5, {"pipe": 1, "data": 1, "model": 2})
    assert is_chosen(first_stage, 5)
