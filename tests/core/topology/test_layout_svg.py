"""Layouts as pictures."""

from __future__ import annotations

import itertools
import re
from xml.etree import ElementTree

import pytest

from scaling.core.errors import LayoutError
from scaling.core.svg import Area, text_width
from scaling.core.topology.layout import Axis, Layout
from scaling.core.topology.layout_svg import draw_layout

SVG = "{http://www.w3.org/2000/svg}"
LAYOUTS = [
    Layout(),
    Layout(data=2),
    Layout(pipe=2, data=2, model=2),
    Layout(pipe=4, data=2, model=4),
    Layout(pipe=2, data=2, context=2, model=2),
]


def boxes_of_ranks(root: ElementTree.Element) -> dict[int, tuple[Area, str]]:
    found = {}
    for box in root.iter(f"{SVG}rect"):
        tip = box.findtext(f"{SVG}title")
        if tip is not None:
            area = Area(*(float(box.get(name, "nan")) for name in ("x", "y", "width", "height")))
            rank = int(re.findall(r"^rank (\d+), ", tip)[0])
            assert rank not in found
            found[rank] = area, tip
    return found


def words_of(root: ElementTree.Element) -> list[str]:
    return [text.text or "" for text in root.iter(f"{SVG}text")]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("ranks_per_host", [None, 4])
def test_every_rank_is_drawn_once_where_it_is(layout: Layout, ranks_per_host: int | None) -> None:
    root = ElementTree.fromstring(draw_layout(layout, ranks_per_host=ranks_per_host))
    boxes = boxes_of_ranks(root)
    assert sorted(boxes) == list(range(layout.world_size))
    assert all(str(rank) in words_of(root) for rank in boxes)
    columns = sorted({area.x for area, _ in boxes.values()})
    rows = sorted({area.y for area, _ in boxes.values()})
    for rank, (area, tip) in boxes.items():
        at = layout.coordinate(rank)
        assert columns.index(area.x) == at.pipe * layout.model + at.model
        assert rows.index(area.y) == at.data * layout.context + at.context
        assert all(f"{axis.value} {at.index(axis)} of {layout.size(axis)}" in tip for axis in Axis)
    for (one, _), (other, _) in itertools.combinations(boxes.values(), 2):
        assert one.right <= other.x or other.right <= one.x or one.bottom <= other.y or other.bottom <= one.y


@pytest.mark.parametrize("layout", [*LAYOUTS, Layout(pipe=8, data=16, model=8), Layout(pipe=2, data=512)])
def test_nothing_is_drawn_beside_the_paper(layout: Layout) -> None:
    root = ElementTree.fromstring(
        draw_layout(layout, ranks_per_host=8, stages=["some layers"] * layout.pipe, title="A")
    )
    width, height = (float(root.get(name, 0)) for name in ("width", "height"))
    assert width < 1160
    for text in root.iter(f"{SVG}text"):
        length = text_width(text.text or "", float(text.get("font-size", 0)))
        start = float(text.get("x", 0)) - {None: 0.0, "middle": length / 2, "end": length}[text.get("text-anchor")]
        assert 0 <= start <= start + length <= width
        assert 0 < float(text.get("y", 0)) <= height


def test_the_groups_of_the_first_rank_are_named() -> None:
    words = words_of(ElementTree.fromstring(draw_layout(Layout(pipe=2, data=2, model=2), stages=["a", "b"])))
    assert "2 pipe x 2 data x 2 model = 8 ranks" in words
    assert [word.split(" ranks ")[1].split(" ")[0] for word in words if word.startswith("model: ")] == ["0-1"]
    assert any(word.startswith("data: ranks 0, 2 ") for word in words)
    assert any(word.startswith("pipe: ranks 0, 4 ") for word in words)
    assert {"a", "b"} <= set(words)
    alone = words_of(ElementTree.fromstring(draw_layout(Layout())))
    assert "One process has the whole model and reads every sample." in alone
    assert not any(word.startswith(("model:", "data:", "pipe:")) for word in alone)


def test_hosts_hold_consecutive_ranks_and_the_last_may_hold_fewer() -> None:
    words = words_of(ElementTree.fromstring(draw_layout(Layout(data=5), ranks_per_host=2)))
    assert [word for word in words if word.startswith("host ") and ":" in word] == [
        "host 0: ranks 0-1",
        "host 1: ranks 2-3",
        "host 2: rank 4",
    ]
    boxes = boxes_of_ranks(ElementTree.fromstring(draw_layout(Layout(data=4, model=2), ranks_per_host=2)))
    assert all(tip.endswith(f"host {rank // 2}") for rank, (_, tip) in boxes.items())


def test_of_a_large_layout_the_first_are_drawn_and_the_rest_is_counted() -> None:
    layout = Layout(pipe=8, data=16, model=8)
    root = ElementTree.fromstring(draw_layout(layout, ranks_per_host=8))
    boxes, words = boxes_of_ranks(root), words_of(root)
    assert len(boxes) == 64
    assert max(boxes) == layout.rank(pipe=3, data=3, model=3)
    counts = "4 more along pipe, 12 more along data, 4 more along model"
    assert f"… and 960 more ranks: {counts}" in words
    assert "… and 122 more hosts" in words
    assert len(boxes_of_ranks(ElementTree.fromstring(draw_layout(layout, most_shown=2)))) == 8


def test_the_same_layout_gives_the_same_text_and_names_are_only_text() -> None:
    layout = Layout(pipe=2)
    drawn = [draw_layout(layout, stages=["<b>", "&"], title='"</svg>') for _ in range(2)]
    assert drawn[0] == drawn[1]
    root = ElementTree.fromstring(drawn[0])
    assert root.get("aria-label") == '"</svg>'
    assert {"<b>", "&"} <= set(words_of(root))


def test_impossible_numbers_are_refused() -> None:
    with pytest.raises(LayoutError, match="a host has at least 1 rank, not 0"):
        draw_layout(Layout(), ranks_per_host=0)
    with pytest.raises(LayoutError, match="at least 1 position of each axis is drawn, not 0"):
        draw_layout(Layout(), most_shown=0)
    with pytest.raises(LayoutError, match="1 stages are named, but the layout has 2 pipe ranks; name each"):
        draw_layout(Layout(pipe=2), stages=["a"])
