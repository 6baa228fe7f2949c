"""Find the parameters that make the losses of two layouts differ: pure, given a function that tries weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from scaling.core.optimizer.patterns import name_in_layer
from scaling.core.verify.deviation import in_model_order, relative_difference

Replacement = Literal["zero", "initial"]
"""The values that replace a parameter in a trial."""


@dataclass(frozen=True)
class Trial:
    """The losses of one batch in two layouts, at weights changed in the same way in both."""

    actual: float
    expected: float

    @property
    def difference(self) -> float:
        """Return the difference of the losses, relative to the expected loss."""
        return relative_difference(self.actual, self.expected)


Try = Callable[[Mapping[str, Replacement]], Trial]
"""Compute both losses with some parameters set to zero or to their initial values, the others unchanged."""


def causes(keys: Iterable[str], attempt: Try, *, tolerance: float) -> tuple[str, ...]:
    """Return the parameters that make the losses differ, in the order of the model; empty where none can be named.

    Where the losses agree at the initial weights, these are the parameters whose change since then alone makes the
    losses differ. Otherwise, they are the parameters that have to be zero for the losses to agree: of several such
    sets, the one that changes the expected loss least. Parameters of the same name in different layers are tried
    together first, because a wrong layer is usually repeated.
    """
    keys = in_model_order(keys)
    all_initial: dict[str, Replacement] = {key: "initial" for key in keys}
    if attempt(all_initial).difference <= tolerance:
        return _parting_alone(keys, all_initial, attempt, tolerance)
    return _vanishing(keys, attempt, tolerance)


def _groups(keys: Sequence[str]) -> list[tuple[str, ...]]:
    found: dict[str, list[str]] = {}
    for key in keys:
        found.setdefault(name_in_layer(key), []).append(key)
    return [tuple(group) for group in found.values()]


def _parting_alone(
    keys: Sequence[str], neutral: Mapping[str, Replacement], attempt: Try, tolerance: float
) -> tuple[str, ...]:
    """Return the parameters that each make the losses differ when left out of `neutral`, at which the losses agree."""

    def part(chosen: Iterable[str]) -> bool:
        changes = {key: change for key, change in neutral.items() if key not in set(chosen)}
        return attempt(changes).difference > tolerance

    suspects = [group for group in _groups([key for key in keys if key in neutral]) if part(group)]
    return tuple(in_model_order(key for group in suspects for key in group if len(group) == 1 or part([key])))


def _vanishing(keys: Sequence[str], attempt: Try, tolerance: float) -> tuple[str, ...]:
    """Return the parameters that have to be zero for the losses to agree."""
    expected = attempt({}).expected
    groups = _groups(keys)
    alone = {group: attempt(_zero(group)) for group in groups}
    sufficient = [group for group in groups if alone[group].difference <= tolerance]
    if sufficient:
        chosen = min(sufficient, key=lambda group: abs(alone[group].expected - expected))
        return _parting_alone(keys, _zero(chosen), attempt, tolerance)
    # Several groups are wrong: set more and more of them to zero, then restore those that were not needed.
    zeroed: list[tuple[str, ...]] = []
    for group in sorted(groups, key=lambda group: (alone[group].difference, abs(alone[group].expected - expected))):
        zeroed.append(group)
        if attempt(_zero(*zeroed)).difference <= tolerance:
            break
    else:
        return ()
    for group in tuple(zeroed):
        rest = [other for other in zeroed if other != group]
        if attempt(_zero(*rest)).difference <= tolerance:
            zeroed = rest
    return _parting_alone(keys, _zero(*zeroed), attempt, tolerance)


def _zero(*groups: Sequence[str]) -> dict[str, Replacement]:
    return {key: "zero" for group in groups for key in group}
