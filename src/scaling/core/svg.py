"""Drawings as SVG text: boxes, words and arrows, readable on light and on dark paper. Pure, and without a dependency.

A drawing loads no script, no font and no file. The same shapes give the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, final
from xml.sax.saxutils import escape, quoteattr

MARGIN: Final = 16.0
"""Units between the outermost shapes and the edge of the paper. A unit is one pixel in an unscaled picture."""

SMALLEST: Final = 9.0
"""Smallest font size of a label."""

_EM: Final = 0.62
"""Width of a character as a share of the font size: more than the average of sans-serif fonts."""

_INK, _FAINT, _PAPER, _EDGE = (
    ("#1f2328", "#f0f3f6"),
    ("#59636e", "#a3adb8"),
    ("#ffffff", "#15181d"),
    ("#d1d9e0", "#3d444d"),
)

FILLS: Final[Mapping[str, tuple[str, str]]] = {
    "forward0": ("#8ec5ff", "#1d5796"),
    "forward1": ("#c6e1ff", "#2f6db5"),
    "forward2": ("#6fb0f5", "#123f70"),
    "forward3": ("#dcecff", "#35679b"),
    "backward0": ("#9fdc9f", "#1f6b36"),
    "backward1": ("#cfefcf", "#2b7542"),
    "backward2": ("#7fcb80", "#154d26"),
    "backward3": ("#e0f5e0", "#3c7550"),
    "input": ("#f9d27d", "#8a5a00"),
    "weight": ("#f5b1ab", "#8f3029"),
    "choose": ("#d7bdf7", "#5b3a8c"),
    "accept": ("#f7b9d4", "#8a2f5c"),
    "hue0": ("#9ecbff", "#1d5796"),
    "hue1": ("#ffd09b", "#8a4f00"),
    "hue2": ("#a5e0a8", "#1f6b36"),
    "hue3": ("#d7bdf7", "#5b3a8c"),
    "hue4": ("#99dfdb", "#0f6460"),
    "hue5": ("#f7b9d4", "#8a2f5c"),
    "idle": ("#eceef1", "#2a3038"),
    "plain": _PAPER,
    "panel": ("#f6f8fa", "#1c2128"),
}
"""The fill of each kind of box, on light and on dark paper; ink is readable on all of them."""

STROKES: Final[Mapping[str, tuple[str, str]]] = {
    "ink": _INK,
    "faint": ("#8c959f", "#6e7781"),
    "edge": _EDGE,
    "blue": ("#0757ba", "#6cb0ff"),
    "green": ("#1a7f37", "#57c878"),
    "orange": ("#9a5200", "#f0a24a"),
    "purple": ("#6f42c1", "#c09bfa"),
}
"""The colour of each kind of line, on light and on dark paper."""

Anchor = Literal["start", "middle", "end"]


@dataclass(frozen=True)
class Area:
    """A rectangle: its upper left corner and its size."""

    x: float
    y: float
    width: float
    height: float

    @property
    def right(self) -> float:
        """Return the x coordinate of the right edge."""
        return self.x + self.width

    @property
    def bottom(self) -> float:
        """Return the y coordinate of the bottom edge."""
        return self.y + self.height

    @property
    def middle(self) -> tuple[float, float]:
        """Return the centre."""
        return self.x + self.width / 2, self.y + self.height / 2


def text_width(words: str, size: float) -> float:
    """Return an estimate of the width of a line of words: rather too wide than too narrow."""
    return len(words) * size * _EM


def nice_step(length: float, most: int) -> float:
    """Return the smallest of ..., 0.5, 1, 2, 5, 10, ... that cuts a positive length into at most `most` parts."""
    step = 10.0
    while length / (step / 10) <= most:
        step /= 10
    while length / step > most:
        step *= 10
    return next(candidate for candidate in (step / 5, step / 2, step) if length / candidate <= most)


@final
class Picture:
    """A drawing in the making. Later shapes lie on top of earlier ones; the paper grows to hold all shapes."""

    def __init__(self, *, title: str, description: str = "") -> None:
        self._title, self._description = title, description
        self._shapes: list[str] = []
        self._used: set[tuple[str, str]] = set()
        self._right = self._bottom = 0.0

    def box(
        self, area: Area, kind: str, *, label: str = "", tip: str = "", size: float = 12, round_by: float = 2
    ) -> None:
        """Draw a filled box of a kind of `FILLS`. Its label is centred; it shrinks, or is left out, if it does not fit.

        `tip` appears when a reader points at the box.
        """
        self._use("fill", kind)
        self._grow(area.right, area.bottom)
        round_by = min(round_by, area.width / 4)
        shape = (
            f'<rect class="fill-{kind}" x="{_number(area.x)}" y="{_number(area.y)}" '
            f'width="{_number(area.width)}" height="{_number(area.height)}" rx="{_number(round_by)}"'
        )
        if area.width < 4:
            shape += ' stroke-width="0.25"'  # a stroke of 1 would cover the whole box
        self._shapes.append(f"{shape}><title>{escape(tip)}</title></rect>" if tip else f"{shape}/>")
        while size > SMALLEST and text_width(label, size) > area.width - 1:
            size -= 0.5
        if label and text_width(label, size) <= area.width - 1 and size <= area.height:
            x, y = area.middle
            self.words(x, y + 0.36 * size, label, anchor="middle", size=size)

    def outline(self, area: Area, kind: str, *, dashed: bool = False, round_by: float = 6) -> None:
        """Draw the edge of a box in a kind of `STROKES`."""
        self._use("stroke", kind)
        self._grow(area.right, area.bottom)
        self._shapes.append(
            f'<rect class="stroke-{kind}{" dashed" if dashed else ""}" x="{_number(area.x)}" y="{_number(area.y)}" '
            f'width="{_number(area.width)}" height="{_number(area.height)}" rx="{_number(round_by)}"/>'
        )

    def words(
        self, x: float, y: float, words: str, *, anchor: Anchor = "start", size: float = 13, style: str = ""
    ) -> None:
        """Write one line of text with its baseline at `y`. `style` is `faint`, `bold`, or both with a space between."""
        self._grow(x + {"start": 1.0, "middle": 0.5, "end": 0.0}[anchor] * text_width(words, size), y + 0.25 * size)
        attributes = "" if anchor == "start" else f' text-anchor="{anchor}"'
        attributes += f' class="{style}"' if style else ""
        self._shapes.append(
            f'<text x="{_number(x)}" y="{_number(y)}" font-size="{_number(size)}"{attributes}>{escape(words)}</text>'
        )

    def line(
        self, points: Sequence[tuple[float, float]], kind: str, *, arrow: bool = False, width: float = 1.5
    ) -> None:
        """Draw straight lines through the points, in a kind of `STROKES`; `arrow` adds a head at the last point."""
        self._use("stroke", kind)
        for x, y in points:
            self._grow(x, y)
        path = "M" + "L".join(f"{_number(x)} {_number(y)}" for x, y in points)
        if arrow:
            path += _head(points[-2], points[-1], 3.5 + 1.5 * width)
        self._shapes.append(f'<path class="stroke-{kind}" stroke-width="{_number(width)}" d="{path}"/>')

    def render(self) -> str:
        """Return the SVG file, for use on its own, in an `<img>`, or inside an HTML page."""
        width, height = _number(self._right + MARGIN), _number(self._bottom + MARGIN)
        described = f"<desc>{escape(self._description)}</desc>\n" if self._description else ""
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" class="scaling-picture" width="{width}" height="{height}" '
            f'viewBox="0 0 {width} {height}" role="img" aria-label={quoteattr(self._title)}>\n'
            f"<title>{escape(self._title)}</title>\n{described}"
            f"<style>{self._style()}</style>\n"
            f'<rect class="paper" x="0.5" y="0.5" width="{_number(self._right + MARGIN - 1)}" '
            f'height="{_number(self._bottom + MARGIN - 1)}" rx="8"/>\n' + "\n".join(self._shapes) + "\n</svg>\n"
        )

    def _use(self, what: Literal["fill", "stroke"], kind: str) -> None:
        self._used.add((what, kind))

    def _grow(self, right: float, bottom: float) -> None:
        self._right, self._bottom = max(self._right, right), max(self._bottom, bottom)

    def _style(self) -> str:
        """Return the CSS rules of the shapes. All begin with the picture's class, so a page's own rules stay apart."""
        return "".join(
            (
                ".scaling-picture{max-width:100%;height:auto;"
                'font-family:system-ui,-apple-system,"Segoe UI","Helvetica Neue",Arial,sans-serif;'
                "font-variant-numeric:tabular-nums}",
                ".scaling-picture .bold{font-weight:600}",
                ".scaling-picture .dashed{stroke-dasharray:5 4}",
                self._colours(0),
                f"@media (prefers-color-scheme:dark){{{self._colours(1)}}}",
            )
        )

    def _colours(self, paper: Literal[0, 1]) -> str:
        """Return the rules for light (0) or dark (1) paper."""
        rules = [
            ("text", f"fill:{_INK[paper]}"),
            ("text.faint", f"fill:{_FAINT[paper]}"),
            (".paper", f"fill:{_PAPER[paper]};stroke:{_EDGE[paper]}"),
        ]
        for what, kind in sorted(self._used):
            if what == "fill":
                rules.append((f".fill-{kind}", f"fill:{FILLS[kind][paper]};stroke:{_PAPER[paper]}"))
            else:
                rules.append((f".stroke-{kind}", f"fill:none;stroke:{STROKES[kind][paper]}"))
        return "".join(f".scaling-picture {name}{{{rule}}}" for name, rule in rules)


def _head(before: tuple[float, float], end: tuple[float, float], size: float) -> str:
    """Return the path of an arrow's head: two short strokes back from the arrow's end."""
    x, y = end[0] - before[0], end[1] - before[1]
    length = (x * x + y * y) ** 0.5 or 1.0
    x, y = x / length * size, y / length * size
    one, other = (end[0] - x - y / 2, end[1] - y + x / 2), (end[0] - x + y / 2, end[1] - y - x / 2)
    return "M" + "L".join(f"{_number(at[0])} {_number(at[1])}" for at in (one, end, other))


def _number(value: float) -> str:
    """Return a number with at most two decimals, the same on every machine."""
    return f"{round(value, 2) + 0.0:.2f}".rstrip("0").rstrip(".")
