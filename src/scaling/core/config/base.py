"""BaseConfig: typed, frozen configuration sections that load from YAML and name every problem at once."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class BaseConfig(BaseModel):
    """A section of the configuration: immutable, unknown keys refused, every default checked like an input."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=True,
        protected_namespaces=(),
        allow_inf_nan=False,
        populate_by_name=True,
        use_attribute_docstrings=True,
    )
