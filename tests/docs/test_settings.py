"""The configuration reference has every setting, with what its declaration says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum
from typing import Annotated, ClassVar, Literal

import pytest
from pydantic import Field

from docs.generator.settings import all_settings, default_of, pages, predecessor_keys
from scaling.core import BaseConfig, ConfigFamily, NoEffect
from scaling.transformer import TransformerConfig


class Colour(Enum):
    """A colour."""

    RED = "red"
    """Like a rose."""
    BLUE = "blue"


class Shape(ConfigFamily):
    """A shape."""

    size: float = Field(default=1.0, gt=0)
    """How large."""


class Round(Shape):
    """Without corners."""

    type: Literal["round"] = "round"
    """Round."""


class Cornered(Shape):
    """With corners."""

    type: Literal["cornered"] = "cornered"
    """Cornered."""
    corners: int = Field(ge=3)
    """How many * there are."""


class Section(BaseConfig):
    """What is drawn."""

    former_names: ClassVar[Mapping[str, str]] = {"color": "colour"}
    colour: Colour = Colour.RED
    """Its colour. `red` is loud."""
    old: Annotated[bool, NoEffect("nobody asks")] = False
    """Formerly: old."""
    shapes: list[Shape] = Field(default_factory=list)
    """In order."""


class Picture(BaseConfig):
    """A picture."""

    title: str | None = None
    """Above it. null: none."""
    drawn: Section = Field(default_factory=Section)
    """What is on it."""


def entries(text: str) -> dict[str, str]:
    return {
        path: text for path, text in re.findall(r"^```{confval} (\S+)\n\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    }


@pytest.fixture(scope="module")
def drawn() -> dict[str, str]:
    return entries(dict(pages(Picture))["drawn.md"])


def test_an_entry_has_type_default_meaning_and_bounds(drawn: dict[str, str]) -> None:
    top = entries(dict(pages(Picture))["top_level.md"])
    assert "Above it. null: none." in top["title"]
    assert "text, or null · default: `null` · on resume: refused" in top["title"]
    assert "How large." in drawn["drawn.shapes.*.size"]
    assert "a number greater than 0 · default: `1.0`" in drawn["drawn.shapes.*.size"]


def test_choices_are_listed_with_what_they_mean(drawn: dict[str, str]) -> None:
    assert "red or blue · default: `red`" in drawn["drawn.colour"]
    assert "- `red`: Like a rose." in drawn["drawn.colour"]


def test_settings_of_a_kind_say_so(drawn: dict[str, str]) -> None:
    assert "Its kind is chosen by `type`: `round` or `cornered`." in drawn["drawn.shapes"]
    assert "Only with `type: cornered`." in drawn["drawn.shapes.*.corners"]
    assert r"How many \* there are." in drawn["drawn.shapes.*.corners"]
    assert "Only with" not in drawn["drawn.shapes.*.size"]


def test_a_section_that_says_more_than_its_setting_is_shown_alone() -> None:
    class Frame(BaseConfig):
        """The frame, of wood."""

    class Framed(BaseConfig):
        """A framed picture."""

        frame: Frame = Field(default_factory=Frame)
        """The frame."""
        inner: Frame = Field(default_factory=Frame)
        """Around the picture."""

        shape: Shape = Field(default_factory=Round)
        """A shape."""

    shown = dict(pages(Framed))
    assert shown["frame.md"].count("The frame") == 1
    assert "A shape.\n\nIts kind is chosen by" in shown["shape.md"], "what is said of a family is not shown"
    assert "Around the picture.\n\nThe frame, of wood." in shown["inner.md"]


def test_what_does_nothing_says_so(drawn: dict[str, str]) -> None:
    assert "**No effect**, accepted for the sake of old files: nobody asks." in drawn["drawn.old"]
    assert "on resume" not in drawn["drawn.old"]


def test_every_setting_has_one_entry() -> None:
    found: list[str] = []
    for _, text in pages():
        found += entries(text)
    expected = {setting.path for setting in all_settings(TransformerConfig)}
    assert sorted(found) == sorted(expected)
    assert {"topology.pipe_parallel_size", "training_groups.*.weight_decay", "optimizer.loss_scaler.factor"} <= expected


def test_names_of_the_predecessor_are_shown() -> None:
    shown = dict(pages())
    runner, topology = entries(shown["runner.md"]), entries(shown["topology.md"])
    assert "Aleph-Alpha/scaling: the same" in runner["runner.master_port"]
    assert "Aleph-Alpha/scaling" not in topology["topology.pipe_schedule"]
    assert {"runner.hostsfile", "topology.world_size"} <= predecessor_keys()


def test_a_default_is_written_as_a_file_would_have_it() -> None:
    class Lists(BaseConfig):
        """Lists."""

        colours: dict[str, list[Colour]] = Field(default={"a": [Colour.RED]})
        """Of each name."""

    assert default_of(Lists.model_fields["colours"]) == '`{"a": ["red"]}`'
