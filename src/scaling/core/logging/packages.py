"""The optional packages that sinks of metrics need, and the ranks that need them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import Final

from scaling.core.errors import Problem
from scaling.core.logging.config import LoggerConfig, TensorboardRanksConfig

_PACKAGES: Final = {"use_tensorboard": "tensorboard", "use_wandb": "wandb", "use_trackio": "trackio"}
"""The package that each switch of the logger needs."""


def is_chosen(
    ranks: Sequence[int] | TensorboardRanksConfig | None, rank: int, positions: Mapping[str, int] | None = None
) -> bool:
    """Return whether a setting names a rank; null names rank 0.

    `positions` are the rank's indices on the axes. None: they are not known yet, and a setting that names positions may
    mean any rank.
    """
    match ranks:
        case None:
            return rank == 0
        case TensorboardRanksConfig():
            wanted = {
                "pipe": ranks.pipe_parallel_rank,
                "data": ranks.data_parallel_rank,
                "model": ranks.model_parallel_rank,
            }
            return positions is None or all(index is None or positions[axis] == index for axis, index in wanted.items())
        case _:
            return rank in ranks


def missing_logger_packages(config: LoggerConfig, rank: int | None = None) -> Iterator[Problem]:
    """Yield a problem for each package that the sinks of a rank (None: of all ranks) need and that is not installed."""
    ranks = {"use_tensorboard": config.tensorboard_ranks, "use_wandb": config.wandb_ranks}
    for switch, package in _PACKAGES.items():
        goes_nowhere = switch == "use_tensorboard" and config.log_dir is None
        if not getattr(config, switch) or goes_nowhere:
            continue
        if (rank is None or is_chosen(ranks.get(switch), rank)) and find_spec(package) is None:
            yield missing_package(switch)


def missing_package(switch: str) -> Problem:
    """Return the problem of a switch whose package is not installed."""
    package = _PACKAGES[switch]
    return Problem(
        f"logger.{switch}",
        f"is true, but the package {package} is not installed; `pip install {package}` or set it to false",
    )
