"""The names of recorded tensors, and the statistics of each. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Final

from scaling.core.config.plain_words import nearest
from scaling.core.errors import ConfigError, Problem
from scaling.core.statistics.config import Statistic, TensorStatisticsRecorderConfig

PARAMETERS: Final = "parameters/"
PARAMETER_GRADIENTS: Final = "parameter_gradients/"
ACTIVATIONS: Final = "activations/"
ACTIVATION_GRADIENTS: Final = "activation_gradients/"
GRADIENTS: Final = (PARAMETER_GRADIENTS, ACTIVATION_GRADIENTS)
SETTING: Final = "trainer.tensor_statistics_recorder_config.statistics"


def chosen(names: Iterable[str], config: TensorStatisticsRecorderConfig) -> dict[str, tuple[Statistic, ...]]:
    """Return the statistics of each name that gets any, in the order of the names.

    `ConfigError` names each pattern that fits no name, or only names that an earlier pattern has taken.
    """
    found: dict[str, tuple[Statistic, ...]] = {}
    names = list(names)
    used: set[int] = set()
    for name in names:
        number = next((number for number, (glob, _) in enumerate(config.statistics) if fits(name, glob)), None)
        if number is not None:
            used.add(number)
            if statistics := tuple(dict.fromkeys(config.statistics[number][1])):
                found[name] = statistics
    if idle := [number for number in range(len(config.statistics)) if number not in used]:
        raise ConfigError([Problem(f"{SETTING}.{number}", _why_idle(config, number, names)) for number in idle])
    return found


def fits(name: str, pattern: str) -> bool:
    """Return whether a pattern fits a name, or the part of the name after its slash."""
    return fnmatchcase(name, pattern) or fnmatchcase(name.partition("/")[2], pattern)


def _why_idle(config: TensorStatisticsRecorderConfig, number: int, names: Sequence[str]) -> str:
    pattern = config.statistics[number][0]
    earlier = [glob for glob, _ in config.statistics[:number]]
    if taken := next((name for name in names if fits(name, pattern)), None):
        first = next(glob for glob in earlier if fits(taken, glob))
        return (
            f"has the pattern {pattern!r}, but all that it fits is taken by {first!r}, which comes before; move it up"
        )
    short = [name.partition("/")[2] for name in names]
    near = nearest(pattern, names if "/" in pattern else short)
    hint = f"did you mean {near!r}? " if near else ""
    return (
        f"has the pattern {pattern!r}, which fits none of the model's {len(names)} tensors; {hint}names are like "
        f"{names[0] if names else 'parameters/layers.0.weight'!r}"
    )


def joined_names(of_ranks: Sequence[Sequence[str]]) -> list[str]:
    """Return the names of all ranks, each once, sorted by kind and then by layer."""
    every = {name for names in of_ranks for name in names}
    return sorted(every, key=_order)


def _order(name: str) -> tuple[int, list[tuple[int, int, str]]]:
    kind, _, rest = name.partition("/")
    kinds = (PARAMETERS, PARAMETER_GRADIENTS, ACTIVATIONS, ACTIVATION_GRADIENTS)
    parts = [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in rest.split(".")]
    return kinds.index(f"{kind}/"), parts


def metric_names(statistics: Mapping[str, Sequence[Statistic]]) -> list[tuple[str, Statistic]]:
    """Return (name, statistic) of every number that is recorded, in order."""
    return [(name, statistic) for name, of in statistics.items() for statistic in of]
