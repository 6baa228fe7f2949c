"""Markers that say what a configuration field is besides a value: `Annotated[bool, NoEffect("why")]`."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TypeVar

from pydantic import GetJsonSchemaHandler
from pydantic.fields import FieldInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

Marker = TypeVar("Marker")


class ConfigWarning(UserWarning):
    """A configuration holds something that is accepted and does nothing."""


@dataclass(frozen=True)
class NoEffect:
    """The field is accepted and forgotten, with a warning that says why. Its value is never kept."""

    why: str

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {**handler(schema), "deprecated": True}


@dataclass(frozen=True)
class Unavailable:
    """The field names a feature this version does not have: any value but the default is a problem."""

    instead: str = field(default="remove it", repr=False)
    """What to do."""

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {**handler(schema), "deprecated": True}


@dataclass(frozen=True)
class Derived:
    """The field may be null or absent: `BaseConfig.prepare` then gives it the value that follows from others."""

    null_in_template: bool = True

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"anyOf": [handler(schema), {"type": "null"}]}


@dataclass(frozen=True)
class SetByLauncher:
    """The field differs between the processes of a run: part of no file, no template and no digest."""


class OnResume(str, Enum):
    """What it means that a run goes on with another value of the field than its checkpoint has.

    A field without this mark is like the section it is in (`BaseConfig.on_resume`), that like the field which holds it.
    """

    IDENTITY = "identity"
    """It is another model: refused unless accepted by name. So is what nothing says anything about."""
    ORDER = "order"
    """Other samples come, or in another order, or something else is trained on the same base: counts as identity where
    the run goes on from its place, else as schedule."""
    SCHEDULE = "schedule"
    """The run goes on differently from here: listed."""
    RUNTIME = "runtime"
    """How and where it runs: free."""


def marker(field: FieldInfo, kind: type[Marker]) -> Marker | None:
    """Return the field's marker of this kind, None where it has none."""
    return next((item for item in field.metadata if isinstance(item, kind)), None)
