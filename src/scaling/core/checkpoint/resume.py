"""Compare a stored configuration with the present one: what forbids resuming, what to point out, what is free. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from fnmatch import fnmatchcase
from typing import Final, final

from scaling.core.errors import ConfigError, Problem
from scaling.core.storage.json_values import Json


class Kind(str, Enum):
    """What a difference means."""

    IDENTITY = "identity"
    """It is another model: refused unless accepted by name."""
    ORDER = "order"
    """Other samples come, or in another order: counts as identity where the run goes on from its place among them, else
    as schedule."""
    SCHEDULE = "schedule"
    """The run goes on differently from here: listed."""
    RUNTIME = "runtime"
    """How and where it runs: free."""


@final
class _Absent(Enum):
    ABSENT = "absent"


FINGERPRINTS: Final = "fingerprints"
"""The section with digests of what a configuration only points at."""

ABSENT: Final = _Absent.ABSENT
"""The value of a setting that one of the two configurations does not have."""


@dataclass(frozen=True)
class Change:
    """One setting that differs."""

    path: str
    stored: Json | _Absent
    present: Json | _Absent
    kind: Kind

    def __str__(self) -> str:
        return f"{self.path}: {_word(self.stored)} in the checkpoint, {_word(self.present)} now"


@dataclass(frozen=True)
class ChangeRules:
    """Which settings are of which kind: dotted paths, each standing for everything below it.

    A segment may have the wildcards of file names (`training_groups.*.name`). The path with more segments decides; of
    equally long ones the stricter kind. What no path covers is of kind `RUNTIME`.
    """

    identity: Sequence[str] = ()
    order: Sequence[str] = ()
    schedule: Sequence[str] = ()
    runtime: Sequence[str] = ()

    def kind(self, path: str) -> Kind:
        """Return what a difference at `path` means."""
        best, found = 0, Kind.RUNTIME
        for kind, patterns in (
            (Kind.IDENTITY, self.identity),
            (Kind.ORDER, self.order),
            (Kind.SCHEDULE, self.schedule),
            (Kind.RUNTIME, self.runtime),
        ):
            for pattern in patterns:
                length = pattern.count(".") + 1
                if length > best and covers(pattern, path):
                    best, found = length, kind
        return found


@dataclass(frozen=True)
class Comparison:
    """All differences, by what they mean."""

    refused: tuple[Change, ...]
    accepted: tuple[Change, ...]
    """Would be refused, but are accepted by name."""
    schedule: tuple[Change, ...]
    runtime: tuple[Change, ...]

    def require(self, setting: str = "trainer.accept_changes") -> None:
        """Raise a `ConfigError` that names every refused change and the setting that would accept it."""
        if self.refused:
            raise ConfigError(
                Problem(
                    change.path,
                    f"{_meaning(change)}{_word(change.present)}, but {_word(change.stored)} in the checkpoint. "
                    f"Set it back, start a new run, or add {change.path!r} to {setting}",
                )
                for change in self.refused
            )


def compare(
    stored: Mapping[str, Json],
    present: Mapping[str, Json],
    rules: ChangeRules,
    *,
    accept: Sequence[str] = (),
    continues: bool = True,
) -> Comparison:
    """Return how `present` differs from `stored`.

    `accept` lists paths (as in `ChangeRules`) of changes to let through. `continues` says whether the run goes on from
    its place in the data. A setting that one side does not have at all, for example because the library was newer, is
    listed rather than refused.
    """
    by_kind: dict[Kind, list[Change]] = {kind: [] for kind in Kind}
    for path, before, now in _differences("", stored, present):
        kind = rules.kind(path)
        if kind is Kind.ORDER:
            kind = Kind.IDENTITY if continues else Kind.SCHEDULE
        if kind is Kind.IDENTITY and (before is ABSENT or now is ABSENT):
            kind = Kind.SCHEDULE
        by_kind[kind].append(Change(path, before, now, kind))
    identity = by_kind[Kind.IDENTITY]
    accepted = tuple(change for change in identity if any(covers(pattern, change.path) for pattern in accept))
    return Comparison(
        refused=tuple(change for change in identity if change not in accepted),
        accepted=accepted,
        schedule=tuple(by_kind[Kind.SCHEDULE]),
        runtime=tuple(by_kind[Kind.RUNTIME]),
    )


def covers(pattern: str, path: str) -> bool:
    """Return whether `path` is what a dotted pattern names, or lies below it."""
    wanted, given = pattern.split("."), path.split(".")
    return len(given) >= len(wanted) and all(fnmatchcase(a, b) for a, b in zip(given, wanted, strict=False))


def _differences(
    path: str, stored: Json | _Absent, present: Json | _Absent
) -> Iterator[tuple[str, Json | _Absent, Json | _Absent]]:
    if isinstance(stored, Mapping) and isinstance(present, Mapping):
        for key in sorted({*stored, *present}):
            below = f"{path}.{key}" if path else key
            yield from _differences(below, stored.get(key, ABSENT), present.get(key, ABSENT))
    elif isinstance(stored, (list, tuple)) and isinstance(present, (list, tuple)) and len(stored) == len(present):
        for index, (before, now) in enumerate(zip(stored, present, strict=True)):
            yield from _differences(f"{path}.{index}", before, now)
    elif stored != present or isinstance(stored, bool) != isinstance(present, bool):
        yield path, stored, present


def _meaning(change: Change) -> str:
    """Say what is behind a digest; other settings speak for themselves."""
    section, _, name = change.path.partition(".")
    return f"the {name} is not what the checkpoint's run used: its digest is " if section == FINGERPRINTS else ""


def _word(value: Json | _Absent) -> str:
    return "not there" if value is ABSENT else repr(value)
