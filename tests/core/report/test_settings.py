"""Settings that are not the usual ones, and those that differ between runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from scaling.core import BaseConfig
from scaling.core.config.fields import Derived
from scaling.core.report.settings import Setting, changed_settings, differing_settings, flat_settings
from scaling.transformer import TransformerConfig


class Part(BaseConfig):
    """A part of it."""

    name: str
    """What it is called."""
    rate: float = 0.1
    """How fast."""


class Whole(BaseConfig):
    """All of it."""

    part: Part | None = None
    """One part, or null: none."""
    parts: list[Part] = Field(default_factory=list)
    """More of them."""
    folder: Path | None = None
    """Where, or null: nowhere."""
    size: Annotated[int, Derived()] = 1
    """How large."""
    words: list[str] = Field(default_factory=lambda: ["a"])
    """What is said."""


def test_the_defaults_of_a_language_model_are_its_defaults() -> None:
    assert list(changed_settings(TransformerConfig())) == []
    again = TransformerConfig.from_dict(TransformerConfig().as_dict(), quiet=True)
    assert list(changed_settings(again)) == []


def test_each_section_is_compared_with_its_own_defaults() -> None:
    config = Whole(
        part=Part(name="x", rate=0.1), parts=[Part(name="y", rate=0.5)], folder=Path("/a"), size=3, words=["a", "b"]
    )
    assert list(changed_settings(config)) == [
        Setting("part.name", "x", "none"),
        Setting("parts.0.name", "y", "none"),
        Setting("parts.0.rate", "0.5", "0.1"),
        Setting("folder", "/a", "null"),
        Setting("size", "3", "1, or what follows from others"),
        Setting("words", "[a, b]", "[a]"),
    ]


def test_lists_of_sections_have_paths_and_other_lists_are_values() -> None:
    values = {"a": {"b": [1, 2]}, "c": [{"d": True}, {"d": None}], "e": {}}
    assert flat_settings(values) == {"a.b": "[1, 2]", "c.0.d": "true", "c.1.d": "null", "e": "{}"}


def test_only_what_differs_between_runs_is_named() -> None:
    found = list(differing_settings([{"a": 1, "b": {"c": 2}}, {"a": 1, "b": {"c": 3}}, {"a": 1, "d": "1"}]))
    assert found == [("b.c", ["2", "3", None]), ("d", [None, None, "'1'"])]
