"""ConfigFamily: sections with several kinds, chosen by a key such as `type:`."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema
from typing_extensions import Self

from scaling.core.config.base import BaseConfig
from scaling.core.config.plain_words import nearest, one_of, shown
from scaling.core.errors import ConfigError, Problem


class ConfigFamily(BaseConfig):
    """A section of several kinds: derive the family from this class, and its members from the family.

    Each member has a text field, named by `kind_key`, whose default is its kind (`type: str = "adamw"`). A file names a
    member by its kind, or by the dotted path of its class in an installed package (`my_package.optimizers.Lion`). Use
    the family as the type of a field; the value will be an instance of the member's class.
    """

    kind_key: ClassVar[str] = "type"
    default_kind: ClassVar[str | None] = None
    """Kind of a section that does not name its kind. None: it has to name one."""

    def __new__(cls, **values: Any) -> Self:
        """Create the member that the values name, so that a program may call the family itself."""
        return super().__new__(cls.choose(values))

    @classmethod
    def members(cls) -> dict[str, type[Self]]:
        """Return the members of the family by kind, in the order they were defined."""
        found = {cls._kind(): cls} if cls.kind_key in cls.model_fields else {}
        for member in cls.__subclasses__():
            found.update(member.members())
        return found

    @classmethod
    def kinds(cls) -> Mapping[str, type[BaseConfig]]:
        """Return the members of the family to which this class belongs, by kind."""
        families = (base for base in reversed(cls.__mro__) if issubclass(base, ConfigFamily))
        return next(family for family in families if family is not ConfigFamily).members()

    @classmethod
    def choose(cls, values: Mapping[str, Any]) -> type[Self]:
        """Return the member class that `values` name."""
        if cls.kind_key in cls.model_fields:
            return cls
        members, kind = cls.members(), values.get(cls.kind_key, cls.default_kind)
        if isinstance(kind, str) and kind in members:
            return members[kind]
        if isinstance(kind, str) and "." in kind and all(part.isidentifier() for part in kind.split(".")):
            return cls._imported(kind)
        near = nearest(kind, members) if isinstance(kind, str) else None
        hint = f"; did you mean {near}?" if near else ""
        raise ConfigError(Problem(cls.kind_key, f"must be {one_of(list(members))}, not {shown(kind)}{hint}"))

    @classmethod
    def _imported(cls, path: str) -> type[Self]:
        module_name, _, name = path.rpartition(".")
        try:
            member = getattr(importlib.import_module(module_name), name)
        except (ImportError, AttributeError) as error:
            raise ConfigError(Problem(cls.kind_key, f"{path!r} cannot be imported: {error}")) from None
        if not (isinstance(member, type) and issubclass(member, cls)):
            raise ConfigError(Problem(cls.kind_key, f"{path!r} is no {cls.__name__}; derive its class from that"))
        return member

    @classmethod
    def _kind(cls) -> str:
        kind: str = cls.model_fields[cls.kind_key].default
        return kind

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        if cls.kind_key in cls.model_fields:
            return handler(schema)
        return {"anyOf": [handler(member.__pydantic_core_schema__) for member in cls.members().values()]}
