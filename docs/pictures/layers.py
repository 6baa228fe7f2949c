"""Pictures of tensor and sequence parallelism: a feed-forward part of the example's model over two model ranks."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from docs.pictures.example import example_plan
from scaling.core.nn.shard import Shard, even_shard
from scaling.core.svg import MARGIN, Area, Picture

RANKS = 2
ROW, TALL = 136.0, 116.0
NOTHING = "nothing"


def tensor_parallel() -> str:
    """Draw which rows and columns each model rank holds, and the two sums."""
    return _feed_forward(
        "Tensor parallelism: two linear layers over two ranks",
        split=False,
        enter=(NOTHING, "all-reduce"),
        leave=("all-reduce", NOTHING),
    )


def sequence_parallel() -> str:
    """Draw the same with activations cut along the sequence outside of the two layers."""
    return _feed_forward(
        "Sequence parallelism: around the same two layers",
        split=True,
        enter=("all-gather", "reduce-scatter"),
        leave=("reduce-scatter", "all-gather"),
    )


def _feed_forward(title: str, *, split: bool, enter: tuple[str, str], leave: tuple[str, str]) -> str:
    """Draw two layers over two ranks; `enter` and `leave` are what is communicated forward and backward."""
    model = example_plan()
    weights = {one.name.split(".")[-2]: one for one in model.parameters(range(1, 2)) if ".mlp." in one.name}
    first, second = weights["dense_in"], weights["dense_out"]
    (width, hidden), sequence = first.shape, model.sequence
    picture = Picture(title=title)
    picture.words(MARGIN, MARGIN + 13, title, size=15, style="bold")
    top = MARGIN + 92
    columns = (
        ("x", f"[{sequence}, {hidden}]", 52.0),
        ("way in", "model group", 108.0),
        ("column-parallel", f"[{width}, {hidden}]", 88.0),
        ("u", f"[{sequence}, {width}]", 92.0),
        ("row-parallel", f"[{hidden}, {width}]", 92.0),
        ("way out", "model group", 108.0),
        ("y", f"[{sequence}, {hidden}]", 52.0),
    )
    areas: list[Area] = []
    x = MARGIN + 58
    for head, shape, wide in columns:
        areas.append(Area(x, top, wide, RANKS * ROW - (ROW - TALL)))
        picture.words(x + wide / 2, top - 32, head, anchor="middle", size=12, style="bold")
        picture.words(x + wide / 2, top - 15, shape, anchor="middle", size=11, style="faint")
        x += wide + 16
    for rank in range(RANKS):
        y = top + rank * ROW
        picture.words(MARGIN, y + TALL / 2 + 4, f"rank {rank}")
        tokens = even_shard(sequence, RANKS, rank, dim=0, what="sequence_length") if split else None
        rows, inputs = first.shard(RANKS, rank), second.shard(RANKS, rank)
        _tensor(picture, Area(areas[0].x, y, areas[0].width, TALL), tokens, sequence, rank)
        _tensor(picture, Area(areas[2].x, y, areas[2].width, TALL), rows, width, rank)
        _tensor(picture, Area(areas[3].x, y + 22, areas[3].width, TALL - 44), _turned(rows), width, rank)
        _tensor(picture, Area(areas[4].x, y + 22, areas[4].width, TALL - 44), inputs, width, rank)
        _tensor(picture, Area(areas[6].x, y, areas[6].width, TALL), tokens, sequence, rank)
        for before, after in pairwise(areas):
            picture.line([(before.right + 3, y + TALL / 2), (after.x - 3, y + TALL / 2)], "faint", arrow=True)
    for area, (forward, backward) in ((areas[1], enter), (areas[5], leave)):
        picture.box(area, "panel", round_by=6)
        picture.outline(area, "edge")
        x, y = area.middle
        for at, head, words in ((y - 32, "forward", forward), (y + 20, "backward", backward)):
            picture.words(x, at, head, anchor="middle", size=11, style="faint")
            picture.words(x, at + 17, words, anchor="middle", size=12, style="faint" if words == NOTHING else "bold")
    return picture.render()


def _turned(shard: Shard | None) -> Shard | None:
    """Return the part of activations whose last dimension is the first of a weight."""
    return None if shard is None else replace(shard, dim=1)


def _tensor(picture: Picture, area: Area, shard: Shard | None, size: int, rank: int) -> None:
    """Draw a matrix of which a rank holds a range of rows (dimension 0) or columns (1), or all of it."""
    if shard is None:
        picture.box(area, "hue2", label="all")
        return
    picture.box(area, "idle", round_by=0)
    first, share = shard.offset / size, shard.length / size
    if shard.dim == 0:
        part = Area(area.x, area.y + first * area.height, area.width, share * area.height)
    else:
        part = Area(area.x + first * area.width, area.y, share * area.width, area.height)
    picture.box(part, f"hue{rank}", label=f"{shard.offset}-{shard.offset + shard.length - 1}", round_by=0)
