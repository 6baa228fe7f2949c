"""HTML and SVG as values: text is escaped, markup is not escaped twice."""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape
from typing import Final, final

from typing_extensions import Self

_NOT_ALLOWED: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
"""Characters that no HTML document may hold, and surrogates, which no file can hold."""
_VOID: Final = frozenset({"br", "input", "link", "meta"})
"""Elements without an end tag."""


@final
class Markup(str):
    """Text that is HTML or SVG already."""

    __slots__ = ()

    @classmethod
    def of(cls, child: object) -> Self:
        """Return markup as it is, None as nothing, and anything else as escaped text."""
        if isinstance(child, cls):
            return child
        return cls("" if child is None else escape(_NOT_ALLOWED.sub("\ufffd", str(child)), quote=True))


Child = Markup | str | int | float | None
"""A possible child of an element."""


def tag(name: str, /, *children: Child, **attributes: str | float | bool | None) -> Markup:
    """Return an element. Text and the values of attributes are escaped.

    `class_` is the attribute class, `data_run` is data-run. An attribute that is None or False is left out; an
    attribute that is True has no value.
    """
    parts = [f"<{name}"]
    for key, value in attributes.items():
        if value is not None and value is not False:
            shown = key.rstrip("_").replace("_", "-")
            parts.append(f" {shown}" if value is True else f' {shown}="{Markup.of(value)}"')
    parts.append(">")
    if name not in _VOID:
        parts += (*map(Markup.of, children), f"</{name}>")
    return Markup("".join(parts))


def join(children: Iterable[Child]) -> Markup:
    """Return the children one after the other."""
    return Markup("".join(map(Markup.of, children)))


def table(head: Iterable[Child], rows: Iterable[Iterable[Child]], *, class_: str | None = None) -> Markup:
    """Return a table whose first column names its rows. It scrolls sideways where it is too wide for the page.

    A head without words is left out.
    """
    named = list(head)
    names = [tag("th", name, scope="col") for name in named]
    lines = []
    for first, *rest in rows:
        lines.append(tag("tr", tag("th", first, scope="row"), *(tag("td", value) for value in rest)))
    above = tag("thead", tag("tr", *names)) if any(named) else None
    body = tag("table", above, tag("tbody", *lines), class_=class_)
    return tag("div", body, class_="wide", tabindex=0, role="group", aria_label="table")
