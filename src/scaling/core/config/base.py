"""BaseConfig: typed, frozen configuration sections that load from YAML and report all problems at once."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from enum import Enum
from inspect import signature
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, ValidationInfo, model_validator
from pydantic.functional_validators import ModelWrapValidatorHandler
from pydantic_core import PydanticCustomError
from typing_extensions import Self

from scaling.core.config.config_file import read_config
from scaling.core.config.explain import PROBLEMS, explain, sections_of
from scaling.core.config.fields import ConfigWarning, Derived, NoEffect, OnResume, SetByLauncher, Unavailable, marker
from scaling.core.config.overrides import apply_overrides
from scaling.core.config.plain_words import misfits, nearest, refusal, with_home
from scaling.core.config.reading import Reading
from scaling.core.config.yaml_text import dump_yaml, parse_yaml
from scaling.core.errors import ConfigError, Problem, StorageError


class BaseConfig(BaseModel):
    """A section of the configuration: immutable, with unknown keys refused and every default checked like an input.

    A subclass declares fields, each with a docstring below it, and where needed `prepare` (fill in values that follow
    from the given ones), `problems` (conflicts within the section) and `cross_checks` (conflicts between its
    sub-sections). All problems of a file are raised as one `ConfigError`. In paths a leading ~ is the home folder.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=True,
        protected_namespaces=(),
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )

    former_names: ClassVar[Mapping[str, str]] = {}
    """Earlier names of fields, still accepted: {old: new}."""
    cross_checks: ClassVar[Sequence[Callable[..., Iterable[Problem]]]] = ()
    """Functions whose parameters are named after fields; each runs when the fields it names are valid by themselves."""

    on_resume: ClassVar[OnResume | None] = None
    """How resuming a run treats a changed field of this section, where the field has no mark of its own. None: as for
    the field that holds the section; as identity where nothing has a mark."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse a check that would never run."""
        for check in cls.cross_checks:
            for name in signature(check).parameters:
                if name not in cls.model_fields:
                    near = nearest(name, cls.model_fields)
                    raise TypeError(
                        f"{cls.__name__}.cross_checks: {check.__name__} asks for {name}, which is no field of "
                        f"{cls.__name__}; {f'did you mean {near}?' if near else 'name its parameters after fields'}"
                    )

    def __init__(self, **values: Any) -> None:
        try:
            self.__pydantic_validator__.validate_python(values, self_instance=self)
        except ValidationError as error:
            raise ConfigError(explain(error, type(self), former_names=self.former_names, kinds=self.kinds())) from None

    # Without this mark pydantic would call __init__ for nested sections too, and their problems could not be collected.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]  # functions have no declared attributes

    @classmethod
    def choose(cls, values: Mapping[str, Any]) -> type[Self]:
        """Return the class that `values` are meant for: this one, except in a `ConfigFamily`."""
        return cls

    @classmethod
    def kinds(cls) -> Mapping[str, type[BaseConfig]]:
        """Return the kinds of section allowed in place of this one, by their names: none except in a family."""
        return {}

    @classmethod
    def read_former(cls, values: Mapping[str, Any]) -> Reading:
        """Return the values of a file in the present form, where the file is of an earlier version. Pure.

        Called once for a whole file, after overrides and before validation.
        """
        return Reading(values)

    @classmethod
    def prepare(cls, given: dict[str, Any]) -> Iterable[Problem]:
        """Fill in values that follow from those given (a private copy, not yet validated); yield the problems."""
        return ()

    def problems(self) -> Iterable[Problem]:
        """Yield the conflicts within this section. Called when every field is valid by itself."""
        return ()

    def notes(self) -> Iterable[Problem]:
        """Yield notes on values of this section that are allowed but have no effect, or are probably a mistake."""
        return ()

    def all_notes(self, path: str = "") -> Iterator[Problem]:
        """Yield the notes of this section and of all sections below it, with their paths."""
        for note in self.notes():
            yield Problem(path + note.path, note.message)
        for name in type(self).model_fields:
            value = getattr(self, name)
            for key, item in enumerate(value) if isinstance(value, list) else [(None, value)]:
                if isinstance(item, BaseConfig):
                    yield from item.all_notes(f"{path}{name}." if key is None else f"{path}{name}.{key}.")

    def derived(self) -> Mapping[str, Any]:
        """Return fields to replace, by name, once everything is valid."""
        return {}

    @classmethod
    def from_dict(
        cls, values: Mapping[str, Any], overrides: Sequence[str] = (), *, source: str | None = None, quiet: bool = False
    ) -> Self:
        """Validate `values` (never changed) after applying `KEY=VALUE` overrides.

        Keys without effect give a `ConfigWarning` each unless `quiet`. Raises `ConfigError` with all problems.
        """
        return cls._load(values, (), overrides, source=source, quiet=quiet)

    @classmethod
    def from_str(
        cls, text: str, overrides: Sequence[str] = (), *, source: str | None = None, quiet: bool = False
    ) -> Self:
        """Load YAML, or JSON with comments and trailing commas."""
        values, problems = parse_yaml(text, source=source)
        return cls._load(values, problems, overrides, source=source, quiet=quiet)

    @classmethod
    def from_yaml(cls, path: Path | str, overrides: Sequence[str] = (), *, quiet: bool = False) -> Self:
        """Load a YAML or JSON file. A file that cannot be read is a `ConfigError` too."""
        return cls.from_str(read_config(path), overrides, source=str(path), quiet=quiet)

    @classmethod
    def _load(
        cls,
        values: Mapping[str, Any],
        earlier: Iterable[Problem],
        overrides: Sequence[str],
        *,
        source: str | None,
        quiet: bool,
    ) -> Self:
        merged, problems = apply_overrides(values, overrides, rename=cls._rename)
        reading = cls.read_former(merged)
        problems = [*earlier, *problems, *reading.problems]
        try:
            config = cls.model_validate(reading.values, context=cls)
        except ValidationError as error:
            problems += explain(error, cls, former_names=cls.former_names, kinds=cls.kinds())
        if problems:
            raise ConfigError(problems, source=source)
        if not quiet:
            for note in (*reading.notes, *cls.without_effect(reading.values)):
                warnings.warn(str(note), ConfigWarning, stacklevel=3)
        return config

    @classmethod
    def without_effect(cls, values: Mapping[str, Any], path: str = "") -> Iterator[Problem]:
        """Yield the keys of `values` that are accepted but have no effect, each with the reason."""
        for name, field in cls.model_fields.items():
            value = values.get(name)
            if (no_effect := marker(field, NoEffect)) and value != field.default and value is not None:
                yield Problem(path + name, f"has no effect: {no_effect.why}")
            for section in _sections(field.annotation):
                for key, item in _sections_in(value, f"{path}{name}"):
                    yield from section.choose(item).without_effect(item, f"{key}.")

    @classmethod
    def _rename(cls, values: dict[str, Any], path: Sequence[str]) -> None:
        """Rename the fields along `path` to their present names, in place."""
        for old, new in cls.former_names.items():
            if old in values and new not in values:
                values[new] = values.pop(old)
        if path and isinstance(nested := values.get(path[0]), dict) and path[0] in cls.model_fields:
            for section in _sections(cls.model_fields[path[0]].annotation):
                section._rename(nested, path[1:])

    @model_validator(mode="wrap")
    @classmethod
    def _validate(cls, values: Any, handler: ModelWrapValidatorHandler[Self], info: ValidationInfo) -> Self:
        """Collect every problem of this section, its fields and its sub-sections before failing."""
        if isinstance(values, cls):
            return handler(values)
        if not isinstance(values, Mapping):
            raise _as_validation_error([Problem("", refusal(cls, (), values))])
        given = dict(values)
        try:
            chosen = cls.choose(given)
        except ConfigError as error:
            raise _as_validation_error(error.problems) from None
        if chosen is not cls:
            return chosen.model_validate(given, context=info.context)
        problems = list(cls._take(given))
        failed = {_first(problem.path) for problem in problems}
        try:
            config = handler(given)
        except ValidationError as error:
            known = {problem.path for problem in problems}
            found = explain(error, cls, former_names=cls.former_names, root=info.context, kinds=cls.kinds())
            problems += [problem for problem in found if problem.path not in known]
            fields = cls._valid_fields(given, {_first(problem.path) for problem in problems})
            problems += run_checks(cls.cross_checks, fields)
            raise _as_validation_error(problems) from None
        if not problems:
            problems += config._problems_within()
        problems += run_checks(cls.cross_checks, {name: value for name, value in config if name not in failed})
        if problems:
            raise _as_validation_error(problems)
        config.__dict__.update(config.derived())
        return config

    @classmethod
    def _take(cls, given: dict[str, Any]) -> Iterator[Problem]:
        """Bring `given` to present names and types, in place; yield the values of a wrong type."""
        for old, new in cls.former_names.items():
            if old in given and new in given:
                yield Problem(old, f"is the earlier name of {new}, which is given too; remove {old}")
                del given[old]
        cls._rename(given, ())
        wrong = False
        for name, field in cls.model_fields.items():
            if name not in given:
                continue
            if marker(field, NoEffect) or (given[name] is None and marker(field, Derived)):
                del given[name]
                continue
            for path, message in misfits(field.annotation, field.metadata, given[name], name):
                wrong = True
                yield Problem(path, message)
            given[name] = with_home(field.annotation, given[name])
        if not wrong:
            yield from cls.prepare(given)

    @classmethod
    def _valid_fields(cls, given: Mapping[str, Any], failed: set[str]) -> dict[str, Any]:
        """Return the fields that the cross checks read and that are valid by themselves."""
        wanted = {name for check in cls.cross_checks for name in signature(check).parameters} - failed
        fields = {}
        for name in wanted:
            field = cls.model_fields[name]
            annotation: Any = field.annotation
            value = given[name] if name in given else field.get_default(call_default_factory=True)
            with suppress(ValidationError):
                fields[name] = TypeAdapter(annotation).validate_python(value)
        return fields

    def _problems_within(self) -> Iterator[Problem]:
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            unavailable = marker(field, Unavailable)
            if unavailable and value is not None and value != field.get_default(call_default_factory=True):
                yield Problem(name, f"is not available in this version; {unavailable.instead}")
        yield from self.problems()

    def as_dict(self) -> dict[str, Any]:
        """Return plain data that can be loaded again: paths and enumerations as text, sections as dictionaries."""
        return {
            name: _plain(getattr(self, name))
            for name, field in type(self).model_fields.items()
            if not (marker(field, NoEffect) or marker(field, SetByLauncher))
        }

    def to_yaml(self) -> str:
        """Return the resolved configuration as YAML that can be loaded again."""
        return dump_yaml(self.as_dict())

    def save(self, path: Path | str) -> None:
        """Write the resolved configuration as YAML."""
        try:
            Path(path).write_text(self.to_yaml(), encoding="utf-8")
        except OSError as error:
            raise StorageError(f"cannot write the configuration to {path}: {error.strerror}") from error

    def digest(self) -> str:
        """Return a digest of all values that have to be the same in all processes of a run."""
        return hashlib.sha256(json.dumps(self.as_dict(), sort_keys=True).encode()).hexdigest()


def run_checks(checks: Iterable[Callable[..., Iterable[Problem]]], fields: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield the problems found by checks between fields; a check runs if all fields its parameters name are given."""
    for check in checks:
        names = list(signature(check).parameters)
        if all(name in fields for name in names):
            yield from check(**{name: fields[name] for name in names})


def _as_validation_error(problems: Sequence[Problem]) -> PydanticCustomError:
    return PydanticCustomError(PROBLEMS, "{problems}", {PROBLEMS: list(problems)})


def _first(path: str) -> str:
    return path.split(".")[0]


def _sections(annotation: Any) -> list[type[BaseConfig]]:
    return [section for section in sections_of(annotation) if issubclass(section, BaseConfig)]


def _sections_in(value: Any, path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if isinstance(value, Mapping):
        yield path, value
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _sections_in(item, f"{path}.{index}")


def _plain(value: Any) -> Any:
    match value:
        case BaseConfig():
            return value.as_dict()
        case Enum():
            return value.value
        case Path():
            return str(value)
        case list() | tuple():
            return [_plain(item) for item in value]
        case Mapping():
            return {key: _plain(item) for key, item in value.items()}
    return value
