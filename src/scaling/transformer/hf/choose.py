"""Find the family of a config.json, or one that can express an architecture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scaling.transformer.config.architecture import TransformerArchitectureConfig
from scaling.transformer.hf.family import Family


def family_of(config: Mapping[str, Any], *, source: str = "config.json") -> Family:
    """Return the family of a config.json; `ConfigError` with everything that cannot be had of it."""
    raise NotImplementedError


def family_for(architecture: TransformerArchitectureConfig, *, model_type: str | None = None) -> Family:
    """Return the family that can express an architecture exactly, `model_type` first; else `ConfigError`."""
    raise NotImplementedError
