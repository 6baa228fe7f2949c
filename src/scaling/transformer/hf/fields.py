"""Fields of a config.json, each a line of a table: its name, its default, and the setting of ours that it gives.

Settings are flat here, with dotted names (`layernorm.bias`). In `Ours`, a setting that would be null because it follows
from another one has its value. `layers` is special: it holds the particulars of the attention of each layer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from scaling.core import Problem

Config = Mapping[str, Any]
"""A config.json."""
Ours = Mapping[str, Any]
"""Settings of `transformer_architecture`, every one resolved."""


class Part(Protocol):
    """Fields that belong together, in both directions. `problems` is called before `read`."""

    @property
    def names(self) -> Sequence[str]:
        """Return the names of the fields, former ones included."""
        ...

    def problems(self, config: Config) -> Iterator[Problem]:
        """Yield problems of the fields: values that are wrong, or not built."""
        ...

    def read(self, config: Config) -> dict[str, Any]:
        """Return our settings."""
        ...

    def write(self, ours: Ours) -> dict[str, Any]:
        """Return the fields."""
        ...


def shown(value: Any) -> str:
    """Format a value as in the file, on one short line."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."


WORDS: Final[Mapping[type, str]] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    list: "a list",
    dict: "a section ({...})",
}


def given(config: Config, name: str, default: Any) -> Any:
    """Return a value of a file, or the default where it is null or absent. Zero counts as a value."""
    value = config.get(name)
    return default if value is None else value


def is_of(kind: type, value: Any) -> bool:
    """Return whether a value of a file is of a kind. Whole numbers count as numbers, booleans do not."""
    if kind is bool or isinstance(value, bool):
        return kind is bool and isinstance(value, bool)
    if kind is float:
        return isinstance(value, (int, float))
    return isinstance(value, kind) or (kind is int and isinstance(value, float) and value.is_integer())


@dataclass(frozen=True)
class Field:
    """A field with a value of its own."""

    name: str
    kind: type
    default: Any
    """Default of the configuration class, for files without the field."""
    key: str
    """Our setting."""
    to_ours: Callable[[Any], Any] = lambda value: value
    to_theirs: Callable[[Any], Any] = lambda value: value
    nullable: bool = False
    """The field may be null, which is passed on unchanged."""
    former: str | None = None
    """Name of the field in older files."""
    above: float | None = None
    """The value must be above this."""
    most: int | None = None
    """The largest accepted value."""

    @property
    def names(self) -> Sequence[str]:
        """Return the name, and the former name where there is one."""
        return (self.name,) if self.former is None else (self.name, self.former)

    def value(self, config: Config) -> Any:
        """Return the value in the file, or the default."""
        former = config.get(self.former, self.default) if self.former is not None else self.default
        value = config.get(self.name, former)
        return int(value) if self.kind is int and isinstance(value, float) and value.is_integer() else value

    def given(self, config: Config) -> Iterator[tuple[str, Any]]:
        """Yield the present name with the value, for other parts that read it."""
        yield self.name, self.value(config)

    def problems(self, config: Config) -> Iterator[Problem]:
        """Yield a problem for a value of the wrong kind, or out of bounds."""
        value = self.value(config)
        if value is None and self.nullable:
            return
        if not is_of(self.kind, value):
            yield Problem(self.name, f"must be {WORDS[self.kind]}, not {shown(value)}")
        elif self.above is not None and not value > self.above:
            yield Problem(self.name, f"must be above {self.above:g}, not {shown(value)}")
        elif self.most is not None and value > self.most:
            yield Problem(self.name, f"must be at most {self.most}, not {shown(value)}")

    def read(self, config: Config) -> dict[str, Any]:
        """Return the one setting."""
        value = self.value(config)
        return {self.key: None if value is None else self.to_ours(value)}

    def write(self, ours: Ours) -> dict[str, Any]:
        """Return the one field."""
        value = ours[self.key]
        return {self.name: None if value is None else self.to_theirs(value)}


@dataclass(frozen=True)
class Choice:
    """A field with a few values, each of which determines some settings."""

    name: str
    default: Any
    values: Mapping[Any, Mapping[str, Any]]
    """An export writes the first value whose settings fit."""

    @property
    def names(self) -> Sequence[str]:
        """Return the name."""
        return (self.name,)

    def problems(self, config: Config) -> Iterator[Problem]:
        """Yield a problem for a value that is not built."""
        value = config.get(self.name, self.default)
        if isinstance(value, (list, dict)) or value not in self.values:
            built = ", ".join(shown(value) for value in dict.fromkeys(self.values))
            yield Problem(self.name, f"is {shown(value)}, which is not built; built: {built}")

    def read(self, config: Config) -> dict[str, Any]:
        """Return the settings of the value."""
        return dict(self.values[config.get(self.name, self.default)])

    def write(self, ours: Ours) -> dict[str, Any]:
        """Return the value whose settings these are; the default where there is none."""
        for value, settings in self.values.items():
            if all(ours[key] == setting for key, setting in settings.items()):
                return {self.name: value}
        return {self.name: self.default}


@dataclass(frozen=True)
class Only:
    """A field that is built only for some values, which change nothing."""

    name: str
    values: Sequence[Any]
    why: str
    """The meaning of any other value, and what to do about it; for a message."""

    @property
    def names(self) -> Sequence[str]:
        """Return the name."""
        return (self.name,)

    def problems(self, config: Config) -> Iterator[Problem]:
        """Yield a problem for any other value."""
        if self.name in config and config[self.name] not in self.values:
            yield Problem(self.name, f"is {shown(config[self.name])}: {self.why}")

    def read(self, config: Config) -> dict[str, Any]:
        """Return nothing."""
        return {}

    def write(self, ours: Ours) -> dict[str, Any]:
        """Return nothing."""
        return {}


@dataclass(frozen=True)
class Computed:
    """Fields and settings that depend on several settings or fields of the other side."""

    fields: Mapping[str, type]
    """Each may be null or absent."""
    to_ours: Callable[[Config], dict[str, Any]]
    to_theirs: Callable[[Ours], dict[str, Any]]
    above: float | None = None
    """Each value must be above this."""

    @property
    def names(self) -> Sequence[str]:
        """Return the names."""
        return tuple(self.fields)

    def problems(self, config: Config) -> Iterator[Problem]:
        """Yield problems for values of the wrong kind, or out of bounds."""
        for name, kind in self.fields.items():
            value = config.get(name)
            if value is None:
                continue
            if not is_of(kind, value):
                yield Problem(name, f"must be {WORDS[kind]}, not {shown(value)}")
            elif self.above is not None and not value > self.above:
                yield Problem(name, f"must be above {self.above:g}, not {shown(value)}")

    def read(self, config: Config) -> dict[str, Any]:
        """Return the settings."""
        return self.to_ours(config)

    def write(self, ours: Ours) -> dict[str, Any]:
        """Return the fields."""
        return self.to_theirs(ours)


def simplest(value: float, *, made_by: Callable[[float], float], undone_by: Callable[[float], float]) -> float:
    """Return the number with the fewest digits from which `made_by` computes `value`.

    Numbers in configuration files are short; numbers computed from them are not.
    """
    exact = undone_by(value)
    for digits in range(16):
        rounded = round(exact, digits)
        if rounded and made_by(rounded) == value:
            return int(rounded) if rounded.is_integer() else rounded
    return exact
