"""Markers of configuration fields with special roles: `Annotated[bool, NoEffect("why")]`."""

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
    """A warning that a configuration holds something that is accepted but has no effect."""


@dataclass(frozen=True)
class NoEffect:
    """A marker of a field that is accepted but ignored, with a warning that gives the reason. No value is kept."""

    why: str

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {**handler(schema), "deprecated": True}


@dataclass(frozen=True)
class Unavailable:
    """A marker of a field for a feature this version does not have: any value but the default is a problem."""

    instead: str = field(default="remove it", repr=False)
    """The advice in the error message."""

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {**handler(schema), "deprecated": True}


@dataclass(frozen=True)
class Derived:
    """A marker of a field that may be null or absent: `BaseConfig.prepare` then derives its value from other fields."""

    null_in_template: bool = True

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"anyOf": [handler(schema), {"type": "null"}]}


@dataclass(frozen=True)
class SetByLauncher:
    """A marker of a field that differs between the processes of a run: part of no file, no template and no digest."""


class OnResume(str, Enum):
    """The meaning of a field's change when a run resumes with another value than its checkpoint has.

    A field without this mark is treated like its section (`BaseConfig.on_resume`), and a section without one like the
    field that holds it.
    """

    IDENTITY = "identity"
    """The model is another one: refused unless accepted by name. This is the default where no mark applies."""
    ORDER = "order"
    """Other samples come, or in another order, or something else is trained on the same base: treated as identity where
    the run continues at its position in the data, else as schedule."""
    SCHEDULE = "schedule"
    """The run continues differently from here: allowed, and listed."""
    RUNTIME = "runtime"
    """How and where the run executes: allowed."""


def marker(field: FieldInfo, kind: type[Marker]) -> Marker | None:
    """Return the field's marker of this kind; None where it has none."""
    return next((item for item in field.metadata if isinstance(item, kind)), None)
