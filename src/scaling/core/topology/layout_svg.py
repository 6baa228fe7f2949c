"""Draw a layout as SVG: which rank holds which stage, part and copy of the model, on which host, in which groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, final

from scaling.core.errors import LayoutError
from scaling.core.svg import MARGIN, Area, Picture, text_width
from scaling.core.topology.layout import Axis, Layout
from scaling.core.topology.ranks import enumerate_ranks

_HUES: Final = 6
_GROUPS: Final = (
    (Axis.MODEL, "orange", "share every layer of a stage"),
    (Axis.CONTEXT, "purple", "share every sequence"),
    (Axis.DATA, "green", "hold the same weights, and read different samples"),
    (Axis.PIPE, "blue", "hold the stages of one copy of the model"),
)
"""Each axis with the colour of its groups, and what the ranks of such a group have in common."""


def draw_layout(
    layout: Layout,
    *,
    ranks_per_host: int | None = None,
    stages: Sequence[str] = (),
    title: str = "",
    most_shown: int = 4,
) -> str:
    """Return a layout as SVG text: a column for each pipe rank, a row for each copy of the model, a box for each rank.

    The colour of a box shows its host (with `ranks_per_host`; hosts hold consecutive ranks), or else its part of a
    layer. Lines connect the ranks of every group of rank 0; a legend below lists each group's ranks. `stages` says what
    each pipe rank holds, such as "layers 0-5". Along each axis at most `most_shown` positions are drawn, and a note
    says how many more there are. Pure.

    Raises `LayoutError` where `ranks_per_host` or `most_shown` is less than 1, or `stages` does not have one entry for
    each pipe rank.
    """
    if ranks_per_host is not None and ranks_per_host < 1:
        raise LayoutError(f"a host has at least 1 rank, not {ranks_per_host}")
    if most_shown < 1:
        raise LayoutError(f"at least 1 position of each axis is drawn, not {most_shown}")
    if stages and len(stages) != layout.pipe:
        raise LayoutError(f"{len(stages)} stages are named, but the layout has {layout.pipe} pipe ranks; name each")
    sizes = f"{layout.pipe} pipe x {layout.data} data x {layout.model} model"
    if layout.context > 1:
        sizes = f"{layout.pipe} pipe x {layout.data} data x {layout.context} context x {layout.model} model"
    counted = f"{layout.world_size} {'rank' if layout.world_size == 1 else 'ranks'}"
    drawing = _Drawing(
        layout,
        Picture(title=title or f"Layout of {counted}", description=f"{counted}: {sizes}"),
        ranks_per_host,
        stages,
        most_shown,
    )
    return drawing.render(title, f"{sizes} = {counted}")


@final
@dataclass
class _Drawing:
    """One layout with the positions of its boxes."""

    layout: Layout
    picture: Picture
    ranks_per_host: int | None
    stages: Sequence[str]
    most_shown: int

    def __post_init__(self) -> None:
        shown = {axis: min(self.layout.size(axis), self.most_shown) for axis in Axis}
        self.shown = shown
        self.box = 44.0 if shown[Axis.PIPE] * shown[Axis.MODEL] > 8 else 60.0
        self.gap = 10.0
        names = max((text_width(name, 12) for name in self.stages), default=0.0)
        self.block = max(
            shown[Axis.MODEL] * (self.box + self.gap) + self.gap + (20.0 if self._left_out(Axis.MODEL) else 0.0),
            names + 2 * self.gap,
            80.0,
        )
        self.left = MARGIN + max(text_width(self._row_name(row), 13) for row in self._rows()) + 8
        self.row = self.box * 0.7 + 2 * self.gap + 8
        self.top = MARGIN

    def render(self, title: str, sizes: str) -> str:
        """Draw everything and return the text."""
        if title:
            self.picture.words(MARGIN, self.top + 13, title, size=15, style="bold")
            self.top += 20
        self.picture.words(MARGIN, self.top + 13, sizes, style="faint")
        self.top += 30
        head = 20.0 + 16 * bool(self.stages) + 16 * (self.layout.model > 1)
        self._draw_columns(head)
        self.top += head
        for number, row in enumerate(self._rows()):
            middle = self.top + number * self.row + self.row / 2
            self.picture.words(MARGIN, middle + 4.5, self._row_name(row))
        self._draw_groups()
        for pipe in range(self.shown[Axis.PIPE]):
            for data, context in self._rows():
                for model in range(self.shown[Axis.MODEL]):
                    self._draw_rank(self.layout.rank(pipe=pipe, data=data, context=context, model=model))
        y = self.top + len(self._rows()) * self.row
        if self._left_out(Axis.PIPE):
            self.picture.words(self._x(self.shown[Axis.PIPE]) - self.gap, (self.top + y) / 2, "…", style="faint")
        if self._left_out(Axis.DATA) or self._left_out(Axis.CONTEXT):
            self.picture.words(MARGIN, y + 12, "…", style="faint")
        y += 30
        self._draw_words(y)
        return self.picture.render()

    def _rows(self) -> list[tuple[int, int]]:
        """Return (data, context) of every row that is drawn."""
        return [(data, context) for data in range(self.shown[Axis.DATA]) for context in range(self.shown[Axis.CONTEXT])]

    def _row_name(self, row: tuple[int, int]) -> str:
        data, context = row
        return f"data {data}, context {context}" if self.layout.context > 1 else f"data {data}"

    def _left_out(self, axis: Axis) -> int:
        """Return how many positions along an axis are not drawn."""
        return self.layout.size(axis) - self.shown[axis]

    def _x(self, pipe: int) -> float:
        return self.left + pipe * (self.block + 2 * self.gap)

    def _area(self, rank: int) -> Area:
        """Return the area of a rank's box."""
        at = self.layout.coordinate(rank)
        row = self._rows().index((at.data, at.context))
        x = self._x(at.pipe) + self.gap + at.model * (self.box + self.gap)
        return Area(x, self.top + row * self.row + (self.row - self.box * 0.7) / 2, self.box, self.box * 0.7)

    def _draw_columns(self, head: float) -> None:
        """Draw a panel for each pipe rank shown, headed by its name, its contents and the model ranks."""
        height = head + len(self._rows()) * self.row
        for pipe in range(self.shown[Axis.PIPE]):
            x = self._x(pipe)
            self.picture.box(Area(x, self.top, self.block, height), "panel", round_by=6)
            self.picture.words(x + self.gap, self.top + 17, f"pipe {pipe}", style="bold")
            y = self.top + 17
            if self.stages:
                y += 16
                self.picture.words(x + self.gap, y, self.stages[pipe], size=12, style="faint")
            if self.layout.model > 1:
                y += 17
                for model in range(self.shown[Axis.MODEL]):
                    middle = x + self.gap + model * (self.box + self.gap) + self.box / 2
                    name = f"model {model}" if text_width(f"model {model}", 11) < self.box + self.gap else f"m {model}"
                    self.picture.words(middle, y, name, anchor="middle", size=11, style="faint")
                after = x + self.gap + self.shown[Axis.MODEL] * (self.box + self.gap)
                if self._left_out(Axis.MODEL):
                    self.picture.words(after, y, "…", style="faint")

    def _draw_rank(self, rank: int) -> None:
        at = self.layout.coordinate(rank)
        hue = at.model if self.ranks_per_host is None else rank // self.ranks_per_host
        parts = [f"rank {rank}"]
        parts += [f"{axis.value} {at.index(axis)} of {self.layout.size(axis)}" for axis in Axis]
        if self.ranks_per_host is not None:
            parts.append(f"host {rank // self.ranks_per_host}")
        area = self._area(rank)
        self.picture.box(area, f"hue{hue % _HUES}", tip=", ".join(parts), round_by=4)
        x, y = area.middle
        if self.ranks_per_host is None:
            self.picture.words(x, y + 5, str(rank), anchor="middle", size=15)
        else:
            self.picture.words(x, y, str(rank), anchor="middle", size=15)
            long = f"host {rank // self.ranks_per_host}"
            host = long if text_width(long, 10) <= area.width else long.replace("ost ", "")
            self.picture.words(x, y + 12, host, anchor="middle", size=10)

    def _draw_groups(self) -> None:
        """Connect the ranks of each group of rank 0: beside each other, below each other, and across columns."""
        for axis, colour, _ in self._groups():
            areas = [self._area(rank) for rank in self._shown_ranks(axis)]
            offset = {Axis.MODEL: 0.0, Axis.CONTEXT: -8.0, Axis.DATA: 8.0, Axis.PIPE: 0.0}[axis]
            if len(areas) < 2:
                continue
            if axis is Axis.PIPE:
                y = areas[0].y - 6  # above the boxes, since the line crosses those of other model ranks
                for area in areas:
                    self.picture.line([(area.middle[0], y), (area.middle[0], area.y)], colour, width=3)
                self.picture.line([(areas[0].middle[0], y), (areas[-1].middle[0], y)], colour, width=3)
            else:
                points = [(area.middle[0] + offset, area.middle[1]) for area in areas]
                self.picture.line(points, colour, width=3)

    def _shown_ranks(self, axis: Axis) -> list[int]:
        """Return the ranks of rank 0's group along an axis that are drawn."""
        return [rank for rank in self.layout.group(axis, 0)][: self.shown[axis]]

    def _groups(self) -> list[tuple[Axis, str, str]]:
        return [group for group in _GROUPS if self.layout.size(group[0]) > 1]

    def _draw_words(self, y: float) -> None:
        """Write below the boxes what is left out, the members of the groups of rank 0, and the ranks of each host."""
        if left_out := [axis for axis in Axis if self._left_out(axis)]:
            more = self.layout.world_size - self.shown[Axis.PIPE] * len(self._rows()) * self.shown[Axis.MODEL]
            along = ", ".join(f"{self._left_out(axis)} more along {axis.value}" for axis in left_out)
            self.picture.words(MARGIN, y, f"… and {more} more ranks: {along}", style="bold")
            y += 26
        if not self._groups():
            self.picture.words(MARGIN, y, "One process has the whole model and reads every sample.", size=12)
            y += 20
        else:
            self.picture.words(MARGIN, y, "Groups of rank 0", size=13, style="bold")
            y += 20
        for axis, colour, words in self._groups():
            self.picture.line([(MARGIN, y - 4), (MARGIN + 22, y - 4)], colour, width=3)
            ranks = _shortened(self.layout.group(axis, 0))
            self.picture.words(MARGIN + 30, y, f"{axis.value}: {ranks} {words}", size=12)
            y += 19
        if self.ranks_per_host is not None:
            self._draw_hosts(y + 6)

    def _draw_hosts(self, y: float) -> None:
        """Draw the legend of the hosts' colours."""
        assert self.ranks_per_host is not None
        hosts = -(-self.layout.world_size // self.ranks_per_host)
        x, shown = MARGIN, min(hosts, _HUES)
        end = max(self._x(self.shown[Axis.PIPE] - 1) + self.block, 480.0)
        for host in range(shown):
            stop = min((host + 1) * self.ranks_per_host, self.layout.world_size)
            name = f"host {host}: {enumerate_ranks(range(host * self.ranks_per_host, stop))}"
            if x > MARGIN and x + 20 + text_width(name, 12) > end:
                x, y = MARGIN, y + 20
            self.picture.box(Area(x, y - 11, 14, 14), f"hue{host % _HUES}")
            self.picture.words(x + 20, y, name, size=12)
            x += 38 + text_width(name, 12)
        if hosts > shown:
            self.picture.words(MARGIN, y + 20, f"… and {hosts - shown} more hosts", size=12, style="faint")


def _shortened(ranks: Sequence[int]) -> str:
    """Return up to eight ranks as text; of more ranks, the first three and their number."""
    if len(ranks) <= 8:
        return enumerate_ranks(ranks)
    return f"ranks {', '.join(map(str, ranks[:3]))}, … ({len(ranks)} ranks)"
