"""A template explains every key and loads as the defaults."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from scaling.core.config.base import BaseConfig
from scaling.core.config.fields import Derived, NoEffect, SetByLauncher, Unavailable
from scaling.core.config.template_text import template


class Inner(BaseConfig):
    """Inner."""

    name: str = "a b"
    """Name."""
    sizes: list[int] = Field(default=[1, 2])
    """Sizes."""


class Dormant(BaseConfig):
    """Nothing to set."""

    switch: Annotated[bool, Unavailable()] = False
    """Switch."""


class Outer(BaseConfig):
    """An outer section.

    With a second paragraph.
    """

    inner: Inner = Field(default_factory=Inner)
    """The inner section, whose description is so long that it has to be broken into two lines, since comments are
    narrow."""
    several: list[Inner] = Field(default_factory=lambda: [Inner(), Inner(name="null")])
    """Several."""
    follows: Annotated[int, Derived()] = 3
    """Follows."""
    shown: Annotated[int, Derived(null_in_template=False)] = 4
    """Shown."""
    rate: float = 1e-8
    """Rate."""
    nothing: int | None = None
    """Nothing. null: off."""
    old: Annotated[int, NoEffect("old")] = 0
    """Old."""
    rank: Annotated[int | None, SetByLauncher()] = None
    """Rank."""
    dormant: Dormant = Field(default_factory=Dormant)
    """Dormant."""


EXPECTED = """\
# An outer section.
# With a second paragraph.

# The inner section, whose description is so long that it has to be broken into two lines, since
# comments are narrow.
inner:
  # Name.
  name: a b
  # Sizes.
  sizes: [1, 2]

# Several.
several:
  -
    # Name.
    name: a b
    # Sizes.
    sizes: [1, 2]
  -
    # Name.
    name: 'null'
    # Sizes.
    sizes: [1, 2]

# Follows.
follows: null

# Shown.
shown: 4

# Rate.
rate: 1e-08

# Nothing. null: off.
nothing: null
"""


def test_a_template_explains_what_can_be_set() -> None:
    assert template(Outer()) == EXPECTED


def test_a_template_loads_as_the_same_configuration() -> None:
    assert Outer.from_str(template(Outer())) == Outer()
