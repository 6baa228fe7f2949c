"""Simulated steps as pictures."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from xml.etree import ElementTree

import pytest

from scaling.core.pipeline.actions import Action, Compute, Send
from scaling.core.pipeline.draw import label
from scaling.core.pipeline.lowering import lower_all
from scaling.core.pipeline.schedule_svg import draw_schedule, draw_schedules
from scaling.core.pipeline.schedules import ForwardOnly, GPipe, Interleaved1F1B, OneFOneB, Schedule
from scaling.core.pipeline.simulate import Simulation, simulate, usual_duration
from scaling.core.svg import Area
from tests.core.pipeline.toy_schedules import ZeroBubble

SVG = "{http://www.w3.org/2000/svg}"


def late(action: Action) -> float:
    """Return durations of which none is 0, and messages that take time."""
    return usual_duration(action) if isinstance(action, Compute) else 0.3


def area_of(box: ElementTree.Element) -> Area:
    return Area(*(float(box.get(name, "nan")) for name in ("x", "y", "width", "height")))


def computations(root: ElementTree.Element) -> Iterator[tuple[Area, str]]:
    """Yield the boxes of computations with what they say to who points at them."""
    for box in root.iter(f"{SVG}rect"):
        if (tip := box.findtext(f"{SVG}title")) is not None:
            yield area_of(box), tip


def steps() -> list[Simulation]:
    schedules: list[tuple[Schedule, int, int]] = [
        (GPipe(), 1, 1),
        (GPipe(), 3, 5),
        (OneFOneB(), 4, 8),
        (Interleaved1F1B(3), 2, 4),
        (ForwardOnly(), 2, 3),
        (ZeroBubble(), 3, 4),
    ]
    return [simulate(lower_all(*one), duration=late) for one in schedules]


@pytest.mark.parametrize("step", steps())
def test_every_computation_is_drawn_once_in_its_row_within_the_frame(step: Simulation) -> None:
    root = ElementTree.fromstring(draw_schedule(step))
    computed = [event for event in step.events if isinstance(event.action, Compute) and event.end > event.start]
    boxes = list(computations(root))
    assert len({tip for _, tip in boxes}) == len(boxes) == len(computed)

    rows: dict[float, list[Area]] = {}
    for area, _ in boxes:
        rows.setdefault(area.y, []).append(area)
    counts = Counter(event.rank for event in computed)
    assert [len(rows[y]) for y in sorted(rows)] == [counts[rank] for rank in sorted(counts)]
    for areas in rows.values():
        areas.sort(key=lambda area: area.x)
        assert all(first.right <= second.x + 0.02 for first, second in itertools.pairwise(areas))

    width, height = (float(root.get(name, 0)) for name in ("width", "height"))
    for box in root.iter(f"{SVG}rect"):
        area = area_of(box)
        assert area.x >= 0
        assert area.y >= 0
        assert area.right <= width
        assert area.bottom <= height


def test_lengths_are_times_and_labels_are_those_of_the_terminal() -> None:
    step = simulate(lower_all(OneFOneB(), 2, 4))
    root = ElementTree.fromstring(draw_schedule(step))
    words = [text.text for text in root.iter(f"{SVG}text")]
    for event in step.events:
        if isinstance(event.action, Compute):
            assert words.count(label(event.action, step.stages)) == 2  # once on each rank
    unit = {round(area.width / (2 if "backward" in tip else 1), 1) for area, tip in computations(root)}
    assert max(unit) - min(unit) < 0.2
    assert f"takes {step.makespan:g}, bubble 20.0 %" in words
    assert [word for word in words if word and word.startswith("keeps")] == ["keeps 2", "keeps 1"]


def test_a_message_is_an_arrow() -> None:
    step = simulate(lower_all(OneFOneB(), 3, 4))

    def arrows(messages: bool) -> int:
        root = ElementTree.fromstring(draw_schedule(step, messages=messages))
        return sum(path.get("class") in ("stroke-blue", "stroke-green") for path in root.iter(f"{SVG}path"))

    legend = 2
    assert arrows(True) == legend + sum(isinstance(event.action, Send) for event in step.events)
    assert arrows(False) == 0


def test_steps_share_an_axis() -> None:
    short, long = simulate(lower_all(OneFOneB(), 2, 2)), simulate(lower_all(OneFOneB(), 4, 12))
    root = ElementTree.fromstring(draw_schedules({"short": short, "long": long}, unit="forward passes"))
    widths = {round(area.width) for area, tip in computations(root) if "forward" in tip}
    assert len(widths) == 1
    words = [text.text for text in root.iter(f"{SVG}text")]
    assert words.index("short") < words.index("long") < words.index("time, in forward passes")


def test_of_many_ranks_some_are_drawn() -> None:
    step = simulate(lower_all(OneFOneB(), 20, 2))
    root = ElementTree.fromstring(draw_schedule(step, most_ranks=3))
    words = [text.text or "" for text in root.iter(f"{SVG}text")]
    assert "… and 17 more ranks" in words
    assert [word for word in words if word.startswith("rank ")] == ["rank 0", "rank 1", "rank 2"]
    assert "more ranks" not in draw_schedule(step, most_ranks=20)


def test_steps_without_time_or_without_backward_passes_are_drawn() -> None:
    nothing = simulate(lower_all(ForwardOnly(), 2, 1), duration=lambda action: 0.0)
    assert not list(computations(ElementTree.fromstring(draw_schedule(nothing))))
    assert "keeps" not in draw_schedule(simulate(lower_all(ForwardOnly(), 2, 1)))
    ElementTree.fromstring(draw_schedules({}))


def test_the_same_step_gives_the_same_text_and_names_are_only_text() -> None:
    one, other = (simulate(lower_all(Interleaved1F1B(2), 2, 4), duration=lambda a: 0.1) for _ in range(2))
    assert draw_schedule(one, messages=True) == draw_schedule(other, messages=True)
    root = ElementTree.fromstring(draw_schedule(one, title="<b>&", unit="</text>"))
    assert root.get("aria-label") == "<b>&"
