"""Drawings as SVG text."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from scaling.core.svg import FILLS, MARGIN, SMALLEST, STROKES, Area, Picture, nice_step, text_width

SVG = "{http://www.w3.org/2000/svg}"


def drawn(picture: Picture) -> ElementTree.Element:
    return ElementTree.fromstring(picture.render())


def test_the_paper_holds_everything_that_is_drawn() -> None:
    picture = Picture(title="a picture")
    picture.box(Area(10, 20, 300, 40), "plain")
    picture.line([(0, 0), (10, 200)], "ink")
    picture.words(350, 10, "words", anchor="end")
    root = drawn(picture)
    assert root.get("viewBox") == "0 0 366 216" == f"0 0 {root.get('width')} {root.get('height')}"
    picture.words(350, 10, "words")
    assert float(drawn(picture).get("width", 0)) == pytest.approx(350 + text_width("words", 13) + MARGIN)


def test_a_picture_says_what_it_is_and_markup_in_words_is_only_text() -> None:
    words = "\"<script>\" & 'co'"
    picture = Picture(title=words, description=words)
    picture.box(Area(0, 0, 500, 40), "plain", label=words, tip=words)
    picture.words(0, 60, words)
    root = drawn(picture)
    assert root.get("role") == "img"
    assert root.get("aria-label") == root.findtext(f"{SVG}title") == root.findtext(f"{SVG}desc") == words
    assert root.findtext(f"{SVG}rect/{SVG}title") == words
    assert [text.text for text in root.iter(f"{SVG}text")] == [words, words]
    assert "<script" not in picture.render()


def test_a_label_is_smaller_or_left_out_where_its_box_is_narrow() -> None:
    def sizes(width: float, height: float = 40) -> list[float]:
        picture = Picture(title="")
        picture.box(Area(0, 0, width, height), "plain", label="label", size=12)
        return [float(text.get("font-size", 0)) for text in drawn(picture).iter(f"{SVG}text")]

    assert sizes(100) == [12]
    assert sizes(100, 10) == []
    assert sizes(10) == []
    found = [sizes(width) for width in range(10, 60)]
    assert all(
        text_width("label", size) <= width - 1 for width, one in zip(range(10, 60), found, strict=True) for size in one
    )
    assert min(size for one in found for size in one) == SMALLEST


def luminance(colour: str) -> float:
    """Return the relative luminance of a colour (WCAG 2.2)."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("paper", [0, 1])
def test_words_and_lines_are_readable_on_light_and_on_dark_paper(paper: int) -> None:
    ink = STROKES["ink"][paper]
    assert {kind for kind, fills in FILLS.items() if contrast(ink, fills[paper]) < 4.5} == set()
    lines = {kind: strokes[paper] for kind, strokes in STROKES.items() if kind != "edge"}
    assert {kind for kind, stroke in lines.items() if contrast(stroke, FILLS["plain"][paper]) < 3} == set()


def test_colours_follow_the_reader_and_touch_nothing_else_in_a_page() -> None:
    picture = Picture(title="")
    picture.box(Area(0, 0, 10, 10), "forward0")
    picture.line([(0, 0), (1, 1)], "blue", arrow=True)
    text = picture.render()
    style = drawn(picture).findtext(f"{SVG}style", "")
    light, dark = style.split("@media (prefers-color-scheme:dark)")
    assert all(FILLS["forward0"][paper] in part for paper, part in enumerate((light, dark)))
    assert FILLS["forward1"][0] not in text
    selectors = re.findall(r"([^{}]+)\{[^{}]*\}", light + dark.removeprefix("{"))
    assert selectors
    assert all(selector.startswith(".scaling-picture") for selector in selectors)
    assert not re.search(r"\b(?:id|href|src)=|url\(|<script|@import", text)


@pytest.mark.parametrize(
    ("length", "most", "step"), [(33, 20, 2), (33, 10, 5), (1, 10, 0.1), (0.03, 3, 0.01), (7e5, 7, 1e5)]
)
def test_an_axis_has_round_numbers(length: float, most: int, step: float) -> None:
    assert nice_step(length, most) == pytest.approx(step)
