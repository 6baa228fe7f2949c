"""Parameter groups: every trainable parameter in exactly one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from scaling.core.config.plain_words import first_of
from scaling.core.errors import ConfigError, Problem
from scaling.core.optimizer.lr_schedule import LearningRateSchedulerConfig
from scaling.core.optimizer.patterns import name_in_layer, takes_parameter, unmatched_patterns
from scaling.core.optimizer.rule import UpdateRule

if TYPE_CHECKING:  # checking a configuration needs no torch, and importing it takes seconds
    from torch import nn

    from scaling.core.nn.parameter import ParameterMeta
    from scaling.core.topology.topology import Topology

SHOWN_KEYS = 10
"""How many parameters an error names; a model has hundreds."""


@dataclass(frozen=True, kw_only=True)
class ParameterGroup:
    """Parameters that share a learning rate and a weight decay. May be empty on some ranks."""

    name: str
    learning_rate_scheduler: LearningRateSchedulerConfig
    weight_decay: float = 0.01
    independent_weight_decay: bool = False
    """Decay by weight_decay * learning rate / peak learning rate in each step, whatever the peak (arXiv:2309.14322)."""
    rule: UpdateRule | None = None
    """The update rule of the group; None: that of the optimizer's configuration."""
    parameters: Sequence[tuple[nn.Parameter, ParameterMeta]] = ()

    @property
    def decay_coefficient(self) -> float:
        """Return the factor by which the learning rate is multiplied to get the decay of a step."""
        peak = self.learning_rate_scheduler.learning_rate
        return self.weight_decay / peak if self.independent_weight_decay and peak else self.weight_decay


@dataclass(frozen=True, kw_only=True)
class GroupPattern:
    """Which parameters a group takes: those whose name matches any of `include` (all, if empty) and none of `exclude`.

    Patterns are regular expressions, searched in the name within the layer (`self_attention.dense.bias`).
    """

    group: ParameterGroup
    include: Sequence[str] = ()
    exclude: Sequence[str] = field(default_factory=tuple)

    def matches(self, name: str) -> bool:
        """Return whether the group takes the parameter."""
        return takes_parameter(name, self.include, self.exclude)


def pattern_problems_of(patterns: Sequence[GroupPattern], names: Iterable[str]) -> list[str]:
    """Return which groups take no trainable parameter, and which patterns match none of them. Pure.

    `names` are the names within layers. Every pattern must match: beside a good one, a mistyped one would go unnoticed.
    """
    names = set(names)
    problems = []
    for pattern in patterns:
        unmatched = unmatched_patterns(pattern.include, names)
        if not any(pattern.matches(name) for name in names):
            problems.append(
                f"group {pattern.group.name!r} takes no parameter; correct its patterns, which are searched in names "
                "without `layers.<index>.`, or remove it"
            )
            unmatched = {one: said for one, said in unmatched.items() if said.endswith("?")}
        problems += [f"group {pattern.group.name!r}: {said}" for said in unmatched.values()]
    return problems


def assign(
    parameters: Iterable[tuple[nn.Parameter, ParameterMeta]],
    patterns: Sequence[GroupPattern],
    topology: Topology,
    *,
    allow_missing: bool = False,
) -> list[ParameterGroup]:
    """Return the groups with this rank's parameters. Collective: all ranks, over the store.

    A parameter in no group or in several, and a group or a pattern that takes no parameter on any rank, are reported in
    one `ConfigError`, the same on all ranks. With `allow_missing`, parameters in no group are frozen: they require no
    gradient from then on. Parameters that already require none belong to no group.
    """
    trainable = {
        description.name: (parameter, description) for parameter, description in parameters if parameter.requires_grad
    }
    mine = _match(trainable, patterns)
    everyone = topology.agree("parameter groups", [list(mine.alone), list(mine.several), sorted(mine.names)], _joined)
    _require_fit(*everyone, patterns=patterns, allow_missing=allow_missing)
    for name in mine.alone:
        trainable[name][0].requires_grad_(False)
    return [
        replace(pattern.group, parameters=tuple(map(trainable.__getitem__, taken)))
        for pattern, taken in zip(patterns, mine.taken, strict=True)
    ]


def check_groups(names: Iterable[str], patterns: Sequence[GroupPattern], *, allow_missing: bool = False) -> None:
    """Raise the `ConfigError` that `assign` raises for trainable parameters of these names. Pure, without torch."""
    found = _match(names, patterns)
    _require_fit(found.alone, found.several, sorted(found.names), patterns=patterns, allow_missing=allow_missing)


@dataclass
class _Match:
    """Which groups take which parameters, by name."""

    taken: list[list[str]]
    """The names that each group takes."""
    alone: list[str] = field(default_factory=list)
    """The names that no group takes."""
    several: list[str] = field(default_factory=list)
    """Messages about the names that several groups take."""
    names: set[str] = field(default_factory=set)
    """All names within layers."""


def _match(names: Iterable[str], patterns: Sequence[GroupPattern]) -> _Match:
    found = _Match([[] for _ in patterns])
    for name in names:
        within = name_in_layer(name)
        found.names.add(within)
        takers = [index for index, pattern in enumerate(patterns) if pattern.matches(within)]
        if len(takers) > 1:
            groups = ", ".join(patterns[index].group.name for index in takers)
            found.several.append(f"{name} is taken by several groups ({groups}); exclude it from all but one")
        elif takers:
            found.taken[takers[0]].append(name)
        else:
            found.alone.append(name)
    return found


def _joined(reports: Sequence[tuple[list[str], list[str], list[str]]]) -> tuple[list[str], list[str], list[str]]:
    """Return the parameters that no group takes, the messages of all ranks, and all names within layers."""
    alone, several, names = (sorted(set().union(*lists)) for lists in zip(*reports, strict=True))
    return alone, several, names


def _require_fit(
    alone: Sequence[str],
    several: Sequence[str],
    names: Sequence[str],
    *,
    patterns: Sequence[GroupPattern],
    allow_missing: bool,
) -> None:
    problems = list(several)
    if alone and not allow_missing:
        which = first_of(alone, SHOWN_KEYS, what="parameters")
        problems.append(
            f"{which} {'is' if len(alone) == 1 else 'are'} in no group; include what is trained, and freeze "
            "the rest with training.allow_missing_params_in_optimizer (in a program: assign(..., allow_missing=True))"
        )
    problems += pattern_problems_of(patterns, names)
    if problems:
        raise ConfigError([Problem("training_groups", problem) for problem in problems])
