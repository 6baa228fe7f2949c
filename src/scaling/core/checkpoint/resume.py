"""Compare a stored configuration with the present one: changes that forbid resuming, need a note, or are free. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from fnmatch import fnmatchcase
from typing import Final, final, get_origin

from typing_extensions import Self

from scaling.core.config.base import BaseConfig
from scaling.core.config.explain import sections_of
from scaling.core.config.family import ConfigFamily
from scaling.core.config.fields import OnResume, marker
from scaling.core.config.plain_words import alternatives
from scaling.core.errors import ConfigError, Problem
from scaling.core.storage.json_values import Json


@final
class _Absent(Enum):
    ABSENT = "absent"


FINGERPRINTS: Final = "fingerprints"
"""The section with digests of data that a configuration only points to."""

ABSENT: Final = _Absent.ABSENT
"""The value of a setting that one of the two configurations does not have."""


@dataclass(frozen=True)
class Change:
    """One setting that differs."""

    path: str
    stored: Json | _Absent
    present: Json | _Absent
    kind: OnResume

    def __str__(self) -> str:
        return f"{self.path}: {_shown(self.stored)} in the checkpoint, {_shown(self.present)} now"


@dataclass(frozen=True)
class ChangeRules:
    """The meaning of changes of settings: dotted paths by kind, each of which covers everything below it.

    A segment may have the wildcards of file names (`training_groups.*.name`). The path with the most segments decides;
    among equally long paths, the stricter kind. A setting that no path covers is identity.
    """

    identity: Sequence[str] = ()
    order: Sequence[str] = ()
    schedule: Sequence[str] = ()
    runtime: Sequence[str] = ()

    @classmethod
    def of(cls, config: type[BaseConfig]) -> Self:
        """Collect the rules that the fields and sections of a configuration declare (`OnResume`)."""
        paths: dict[str, list[str]] = {kind.value: [] for kind in OnResume}
        for path, kind in _marks(config):
            paths[kind.value].append(path)
        return cls(**paths)

    def over(self, others: ChangeRules) -> ChangeRules:
        """Return these rules, and those of `others` for paths that these do not name."""
        own = {path for kind in OnResume for path in self._paths(kind)}
        joined = {
            kind.value: (*self._paths(kind), *(path for path in others._paths(kind) if path not in own))
            for kind in OnResume
        }
        return ChangeRules(**joined)

    def find(self, path: str) -> OnResume | None:
        """Return what a change at `path` means by these rules, None where no rule covers it."""
        best, found = 0, None
        for kind in OnResume:  # the strictest first
            for pattern in self._paths(kind):
                length = pattern.count(".") + 1
                if length > best and covers(pattern, path):
                    best, found = length, kind
        return found

    def kind(self, path: str) -> OnResume:
        """Return what a change at `path` means."""
        return self.find(path) or OnResume.IDENTITY

    def _paths(self, kind: OnResume) -> Sequence[str]:
        paths: Sequence[str] = getattr(self, kind.value)
        return paths


def _marks(section: type[BaseConfig], below: str = "") -> Iterator[tuple[str, OnResume]]:
    """Yield the paths of the fields that declare, themselves or by their sections, what a change means."""
    for name, field in section.model_fields.items():
        path = f"{below}{name}"
        inner = [found for found in sections_of(field.annotation) if issubclass(found, BaseConfig)]
        said = (marker(field, OnResume), *(part.on_resume for part in inner), None if below else section.on_resume)
        if kind := next(filter(None, said), None):
            yield path, kind
        for part in inner:
            members = part.members().values() if issubclass(part, ConfigFamily) else ()
            items = ".*" if any(get_origin(arm) is list for arm in alternatives(field.annotation)) else ""
            for each in dict.fromkeys((part, *members)):
                yield from _marks(each, f"{path}{items}.")


@dataclass(frozen=True)
class Comparison:
    """All differences, by their meaning."""

    refused: tuple[Change, ...]
    accepted: tuple[Change, ...]
    """Changes that would be refused, but are accepted by name."""
    schedule: tuple[Change, ...]
    runtime: tuple[Change, ...]

    def all(self) -> tuple[Change, ...]:
        """Return every difference."""
        return (*self.refused, *self.accepted, *self.schedule, *self.runtime)

    def require(self, setting: str = "trainer.accept_changes", *, reasons: Mapping[str, str] | None = None) -> None:
        """Raise a `ConfigError` that names every refused change and the setting that would accept it.

        `reasons` gives, for the paths of changes, their causes.
        """
        if self.refused:
            raise ConfigError(
                Problem(
                    change.path,
                    f"{_meaning(change)}{_shown(change.present)}, but {_shown(change.stored)} in the checkpoint. "
                    f"{(reasons or {}).get(change.path, '')}Set it back, start a new run, or add {change.path!r} to "
                    f"{setting}",
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

    `accept` lists paths (as in `ChangeRules`) of changes to accept. `continues` says whether the run continues from its
    position in the data, not from weights alone. A setting that only one side has, for example because the library was
    newer, is listed rather than refused.
    """
    by_kind: dict[OnResume, list[Change]] = {kind: [] for kind in OnResume}
    for path, before, now in differing_values(stored, present):
        kind = rules.kind(path)
        if kind is OnResume.ORDER:
            kind = OnResume.IDENTITY if continues else OnResume.SCHEDULE
        if kind is OnResume.IDENTITY and (before is ABSENT or now is ABSENT):
            kind = OnResume.SCHEDULE
        by_kind[kind].append(Change(path, before, now, kind))
    identity = by_kind[OnResume.IDENTITY]
    accepted = tuple(change for change in identity if any(covers(pattern, change.path) for pattern in accept))
    return Comparison(
        refused=tuple(change for change in identity if change not in accepted),
        accepted=accepted,
        schedule=tuple(by_kind[OnResume.SCHEDULE]),
        runtime=tuple(by_kind[OnResume.RUNTIME]),
    )


def behind_digests(found: Comparison, settings: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Return the cause of each digest that differs: the changed settings that it depends on, or else changed files.

    `settings` lists, for the name of each digest, the paths of the settings that it depends on.
    """
    changes, reasons = found.all(), {}
    for digest in (change for change in changes if change.path.startswith(f"{FINGERPRINTS}.")):
        deciding = settings.get(digest.path.partition(".")[2], ())
        changed = [
            f"{change.path} was {_shown(change.stored)}, is {_shown(change.present)}"
            for change in changes
            if any(covers(path, change.path) for path in deciding)
        ]
        if changed:
            reasons[digest.path] = f"It follows from settings that have changed: {'; '.join(changed)}. "
        elif deciding:
            reasons[digest.path] = f"{', '.join(deciding)} are as they were, so files have changed. "
    return reasons


def covers(pattern: str, path: str) -> bool:
    """Return whether `path` is what a dotted pattern names, or lies below it."""
    wanted, given = pattern.split("."), path.split(".")
    return len(given) >= len(wanted) and all(fnmatchcase(a, b) for a, b in zip(given, wanted, strict=False))


def differing_values(
    stored: Json | _Absent, present: Json | _Absent, path: str = ""
) -> Iterator[tuple[str, Json | _Absent, Json | _Absent]]:
    """Yield the path of each value that differs, and the two values; `ABSENT` stands for a missing one."""
    if isinstance(stored, Mapping) and isinstance(present, Mapping):
        for key in sorted({*stored, *present}):
            below = f"{path}.{key}" if path else key
            yield from differing_values(stored.get(key, ABSENT), present.get(key, ABSENT), below)
    elif isinstance(stored, (list, tuple)) and isinstance(present, (list, tuple)) and len(stored) == len(present):
        for index, (before, now) in enumerate(zip(stored, present, strict=True)):
            yield from differing_values(before, now, f"{path}.{index}")
    elif stored != present or isinstance(stored, bool) != isinstance(present, bool):
        yield path, stored, present


def _meaning(change: Change) -> str:
    """Explain what a digest belongs to; other settings speak for themselves."""
    section, _, name = change.path.partition(".")
    return f"the {name} is not what the checkpoint's run used: its digest is " if section == FINGERPRINTS else ""


def _shown(value: Json | _Absent) -> str:
    return "not there" if value is ABSENT else repr(value)
