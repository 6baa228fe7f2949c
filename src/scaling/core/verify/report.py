"""The result of a comparison of two layouts, for a program and, as text, for a person."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from scaling.core.config.plain_words import first_of

Quantity = Literal[
    "parameters", "initial weights", "loss", "gradients", "gradient norm", "updated weights", "evaluation loss"
]

_SHOWN: Final = 5
"""At most so many parameters are named; their number is given in any case."""


@dataclass(frozen=True, kw_only=True)
class Gap:
    """The largest difference between the layouts in one quantity."""

    quantity: Quantity
    step: int
    relative: float
    actual: float = 0.0
    expected: float = 0.0
    key: str | None = None
    """The parameter; None for a loss or a norm."""
    rank: int | None = None
    index: tuple[int, ...] = ()
    """Global index of the element of the parameter."""


@dataclass(frozen=True)
class Parting:
    """The place where two layouts stop being the same training run: the first quantity that differs in the first step.

    As text: what differs, where, and what to look at.
    """

    gap: Gap
    message: str = ""
    """The fault, where numbers do not show it."""
    parameters: tuple[str, ...] = ()
    """All parameters that differ there, or that make a loss differ, starting with the one to look at first."""

    def __str__(self) -> str:
        return "\n".join(_explanation(self))


@dataclass(frozen=True, kw_only=True)
class LayoutReport:
    """The result of `verify_layout`.

    As text: the largest differences, and either that the layouts are the same training run or where they diverge.
    """

    steps: int
    tolerance: float
    digest: str | None = None
    """SHA-256 of the initial weights, the same in both layouts; None where the weights differ."""
    elements: int = 0
    """Number of elements of all parameters."""
    worst: Mapping[Quantity, Gap] = field(default_factory=dict)
    """The largest difference in each quantity, over all steps that agree."""
    parting: Parting | None = None

    @property
    def agrees(self) -> bool:
        """Return whether the layouts are the same training run."""
        return self.parting is None

    def __str__(self) -> str:
        return "\n".join(_summary(self))


def _summary(report: LayoutReport) -> Iterator[str]:
    parting, parameters = report.parting, f"{report.elements:,} parameters"
    if parting is None:
        yield f"{report.steps} steps, {parameters}; largest relative differences:"
    elif report.elements:
        when = "in" if parting.gap.step else "before"
        until = "; largest relative differences until then:" if report.digest or report.worst else ""
        yield f"parted {when} step {max(parting.gap.step, 1)} of {report.steps}, {parameters}{until}"
    if report.digest is not None:
        yield f"  {'initial weights':16} identical, SHA-256 {report.digest[:16]}..."
    for quantity, gap in report.worst.items():
        if quantity != "initial weights":
            where = f"{gap.key}{list(gap.index)} on rank {gap.rank}" if gap.key else ""
            yield f"  {quantity:16} {gap.relative:.1e}  step {gap.step}  {where}".rstrip()
    if parting is None:
        yield f"The layouts are the same training run (to {report.tolerance:.0e})."
    else:
        yield from _explanation(parting, report.tolerance)


def _explanation(parting: Parting, tolerance: float | None = None) -> Iterator[str]:
    gap, names = parting.gap, parting.parameters
    rank = "" if gap.rank is None else f" on rank {gap.rank}"
    if gap.quantity == "parameters":
        yield f"The layouts have different parameters: {gap.key} {parting.message}."
        return
    what = gap.quantity if gap.key is None else f"{gap.quantity} of {gap.key}{list(gap.index)}"
    allowed = "" if tolerance is None else f", {tolerance:.0e} allowed"
    yield (
        f"The layouts part at step {gap.step}{rank}: {what} {'are' if gap.key else 'is'} {gap.actual!r} instead of "
        f"{gap.expected!r} ({gap.relative:.1e} relative{allowed})."
    )
    if parting.message:
        yield f"  {parting.message[0].upper()}{parting.message[1:]}."
    listed = first_of(names, _SHOWN)
    if gap.quantity == "loss":
        yield (
            f"  The difference comes in through {listed}: look at how its layer uses it on each rank."
            if names
            else "  It comes in through no parameter of its own: look at data, positions, masks and the loss function."
        )
    elif len(names) > 1:
        nearest = " (the nearest to the loss first)" if gap.quantity == "gradients" else ""
        yield f"  {len(names)} parameters differ{nearest}: {listed}."
