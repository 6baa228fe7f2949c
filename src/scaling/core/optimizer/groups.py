"""Parameter groups: every trainable parameter in exactly one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from torch import nn

from scaling.core.errors import ConfigError, Problem
from scaling.core.nn.parameter import ParameterMeta
from scaling.core.optimizer.lr_schedule import LearningRateSchedulerConfig
from scaling.core.optimizer.patterns import name_in_layer, takes_parameter, unmatched_patterns
from scaling.core.optimizer.rule import UpdateRule
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
    """Decay by weight_decay * learning rate / peak learning rate a step, whatever the peak (arXiv:2309.14322)."""
    rule: UpdateRule | None = None
    """How they are updated; None: as the optimizer's configuration says."""
    parameters: Sequence[tuple[nn.Parameter, ParameterMeta]] = ()

    @property
    def decay_coefficient(self) -> float:
        """Return what is multiplied with the learning rate."""
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
    """Return which groups take nothing of all trainable parameters, and which patterns match none of them. Pure.

    `names` are those within layers. Every pattern must match, for beside a good one a mistyped one is not missed.
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

    A parameter in no group or in several, and a group or a pattern that takes no parameter on any rank, are one
    `ConfigError` that is the same on all ranks. With `allow_missing` parameters in no group are frozen: they need no
    gradient from then on. Parameters that need none already belong to no group.
    """
    taken: list[list[tuple[nn.Parameter, ParameterMeta]]] = [[] for _ in patterns]
    names: list[str] = []
    missing: list[str] = []
    several: list[str] = []
    for parameter, description in parameters:
        if not parameter.requires_grad:
            continue
        names.append(name_in_layer(description.name))
        takers = [index for index, pattern in enumerate(patterns) if pattern.matches(names[-1])]
        if len(takers) > 1:
            groups = ", ".join(patterns[index].group.name for index in takers)
            several.append(f"{description.name} is taken by several groups ({groups}); exclude it from all but one")
        elif takers:
            taken[takers[0]].append((parameter, description))
        elif allow_missing:
            parameter.requires_grad_(False)
        else:
            missing.append(description.name)
    left, problems, known = topology.agree("parameter groups", [missing, several, sorted(set(names))], _joined)
    if left:
        problems.append(
            f"{_listed(left)} {'is' if len(left) == 1 else 'are'} in no group; include what is trained, and freeze "
            "the rest with training.allow_missing_params_in_optimizer (in a program: assign(..., allow_missing=True))"
        )
    problems += pattern_problems_of(patterns, known)
    if problems:
        raise ConfigError([Problem("training_groups", problem) for problem in problems])
    return [
        replace(pattern.group, parameters=tuple(parameters))
        for pattern, parameters in zip(patterns, taken, strict=True)
    ]


def _joined(reports: Sequence[tuple[list[str], list[str], list[str]]]) -> tuple[list[str], list[str], list[str]]:
    """Return what all ranks miss, what all complain of, and the names within layers on all of them."""
    missing, several, names = (sorted(set().union(*lists)) for lists in zip(*reports, strict=True))
    return missing, several, names


def _listed(keys: Sequence[str]) -> str:
    shown = ", ".join(keys[:SHOWN_KEYS])
    return shown if len(keys) <= SHOWN_KEYS else f"{shown} and {len(keys) - SHOWN_KEYS} more parameters"
