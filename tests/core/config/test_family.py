"""A family's section is of the member its kind names."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
from pydantic import Field

from scaling.core.config.base import BaseConfig
from scaling.core.config.family import ConfigFamily
from scaling.core.errors import ConfigError


class Shape(ConfigFamily):
    """A shape."""


class Circle(Shape):
    """A circle."""

    type: str = "circle"
    """Kind."""
    radius: float = Field(default=1.0, gt=0)
    """Radius."""


class Square(Shape):
    """A square."""

    type: str = "square"
    """Kind."""
    side: float = 1.0
    """Side."""


class Noise(ConfigFamily):
    """A noise."""

    kind_key: ClassVar[str] = "noise_type"
    default_kind: ClassVar[str | None] = "hum"


class Hum(Noise):
    """A hum."""

    noise_type: str = "hum"
    """Kind."""


class Drawing(BaseConfig):
    """A drawing."""

    shapes: list[Shape] = Field(default_factory=list)
    """Shapes."""
    main: Shape = Field(default_factory=Circle)
    """Main shape."""
    noise: Noise | None = None
    """Noise."""


def problem(values: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as raised:
        Drawing.from_dict(values)
    return str(raised.value)


def test_the_kind_chooses_the_member() -> None:
    drawing = Drawing.from_dict({"shapes": [{"type": "square", "side": 2}, {"type": "circle"}], "noise": {}})
    assert drawing.shapes == [Square(side=2.0), Circle()]
    assert drawing.main == Circle()
    assert drawing.noise == Hum()
    assert Drawing.from_str(drawing.to_yaml()) == drawing


def test_a_family_may_be_called_for_the_member_that_the_values_name() -> None:
    values: dict[str, Any] = {"type": "square", "side": 2.0}
    assert Shape(**values) == Square(side=2.0)
    assert Noise() == Hum()
    with pytest.raises(ConfigError, match="circle or square"):
        Shape()


def test_a_dotted_path_names_a_member_of_another_package() -> None:
    path = "tests.core.config.test_family.Square"
    drawing = Drawing.from_dict({"main": {"type": path}})
    assert (type(drawing.main).__name__, drawing.as_dict()["main"]["type"]) == ("Square", path)
    assert Drawing.from_str(drawing.to_yaml()) == drawing


def test_what_names_no_member_is_refused() -> None:
    assert problem({"main": {"type": "circel"}}) == (
        "main.type: must be one of circle or square, not 'circel'; did you mean circle?"
    )
    assert problem({"main": {"radius": 1}}) == "main.type: must be one of circle or square, not null"
    for no_path in (".circle", "..a.b", "circle.", "my shapes.Oval"):
        assert problem({"main": {"type": no_path}}).startswith("main.type: must be one of circle or square, not ")
    assert problem({"main": {"type": "no.such.Shape"}}).startswith("main.type: 'no.such.Shape' cannot be imported: ")
    assert problem({"main": {"type": "pathlib.Path"}}) == (
        "main.type: 'pathlib.Path' is no Shape; derive its class from that"
    )


def test_problems_of_members_are_collected_under_their_path() -> None:
    assert problem({"shapes": [{"type": "circle", "radius": 0}, {"type": "square", "side": "x", "sides": 4}]}) == (
        "3 problems:\n"
        "  - shapes.0.radius: must be a number greater than 0, not 0\n"
        "  - shapes.1.side: must be a number, not 'x'\n"
        "  - shapes.1.sides: unknown key; did you mean side?"
    )


def test_the_schema_offers_every_member() -> None:
    members = Drawing.model_json_schema()["$defs"]["Shape"]["anyOf"]
    assert [member.get("title") or member["$ref"].rpartition("/")[2] for member in members] == ["Circle", "Square"]
