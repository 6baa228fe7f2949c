"""Pictures of memory: what a rank keeps of activations, and whose the optimizer's state is under ZeRO-1."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path

from docs.pictures.example import example_plan
from scaling.core.optimizer.flat_buffer import plan
from scaling.core.svg import MARGIN, Area, Picture, nice_step

FILE = Path(__file__).parents[2] / "benchmarks" / "results" / "cpu-memory_curve.json"
"""What benchmarks/memory_curve.py measured."""
COLOURS = {"disabled": "ink", "selective": "blue", "every_layer": "green", "every_pipe_stage": "orange"}
MIB = 1 << 20
DATA_RANKS, BUCKET = 2, 300_000


def activation_memory() -> str:
    """Draw the measured bytes of tensors alive during a step, a line for each kind of checkpointing."""
    measured: dict[str, list[int]] = json.loads(FILE.read_text())["bytes"]
    width, height, left, top = 640.0, 260.0, MARGIN + 46, MARGIN + 34
    most = max(max(curve) for curve in measured.values()) / MIB
    picture = Picture(title="Memory during a step by activation_checkpointing_type")
    picture.words(MARGIN, MARGIN + 13, "Tensors alive during one step of one process, MiB", size=15, style="bold")
    step = nice_step(most, 6)
    for number in range(int(most / step) + 1):
        y = top + height - number * step / most * height
        picture.line([(left, y), (left + width, y)], "edge", width=1)
        picture.words(left - 8, y + 4, f"{number * step:g}", anchor="end", size=12, style="faint")
    for kind, curve in measured.items():
        points = [
            (left + width * number / (len(curve) - 1), top + height * (1 - bytes_alive / MIB / most))
            for number, bytes_alive in enumerate(curve)
        ]
        picture.line(points, COLOURS[kind], width=2)
    y = top + height + 18
    picture.words(left, y, "start of the step", size=12, style="faint")
    picture.words(left + width, y, "its end", anchor="end", size=12, style="faint")
    for number, (kind, curve) in enumerate(measured.items()):
        x, base = left + number % 2 * width / 2, y + 26 + number // 2 * 20
        picture.line([(x, base - 4), (x + 18, base - 4)], COLOURS[kind], width=3)
        picture.words(x + 24, base, f"{kind}: at most {max(curve) / MIB:.0f} MiB", size=12)
    return picture.render()


def zero() -> str:
    """Draw the flat buffer of one layer of the example, its buckets, and the slices that each data rank owns."""
    model = example_plan()
    parameters = [one for one in model.parameters(range(1, 2)) if len(one.shape) > 1]
    sizes = [prod(one.shape) for one in parameters]
    places, buckets = plan(sizes, bucket_size=BUCKET, parts=DATA_RANKS)
    total, width, left = buckets[-1].stop, 590.0, MARGIN + 122
    scale = width / total
    picture = Picture(title=f"ZeRO-1: one flat buffer, {len(buckets)} buckets, {DATA_RANKS} data ranks")
    picture.words(
        MARGIN, MARGIN + 13, f"The matrices of one layer: {total:,} numbers in one flat buffer", size=15, style="bold"
    )
    y = MARGIN + 34
    picture.words(MARGIN, y + 18, "parameters")
    for parameter, place in zip(parameters, places, strict=True):
        name = parameter.name.split(".", 2)[-1].removesuffix(".weight")
        area = Area(left + place.start * scale, y, (place.stop - place.start) * scale, 28)
        tip = f"{parameter.name} {list(parameter.shape)}: {place.start:,} to {place.stop:,}, bucket {place.bucket}"
        picture.box(area, "idle", label=name.rsplit(".", 1)[-1], tip=tip)
    y += 38
    picture.words(MARGIN, y + 18, "buckets")
    for number, bucket in enumerate(buckets):
        area = Area(left + bucket.start * scale, y, (bucket.stop - bucket.start) * scale, 28)
        picture.box(area, "plain")
        picture.outline(Area(area.x + 1, y, area.width - 2, 28), "faint", round_by=2)
        words = f"bucket {number}: {bucket.stop - bucket.start:,}"
        picture.words(area.middle[0], y + 18, words, anchor="middle", size=12)
    y += 44
    picture.words(MARGIN, y + 8, "gradients")
    for bucket in buckets:
        x = left + (bucket.start + bucket.stop) / 2 * scale
        picture.line([(x, y - 10), (x, y + 14)], "green", arrow=True)
        picture.words(x + 8, y + 8, "reduce-scatter", size=12)
    y += 22
    for rank in range(DATA_RANKS):
        picture.words(MARGIN, y + 18, f"data rank {rank} owns")
        picture.box(Area(left, y, width, 28), "idle", round_by=0)
        for bucket in buckets:
            owned = bucket.slice_of(rank, DATA_RANKS)
            area = Area(left + owned.start * scale, y, (owned.stop - owned.start) * scale, 28)
            tip = f"data rank {rank} updates {owned.start:,} to {owned.stop:,}"
            picture.box(area, f"hue{rank}", label="AdamW", tip=tip)
        y += 36
    picture.words(MARGIN, y + 20, "weights")
    for bucket in buckets:
        x = left + (bucket.start + bucket.stop) / 2 * scale
        picture.line([(x, y + 2), (x, y + 26)], "blue", arrow=True)
        picture.words(x + 8, y + 20, "all-gather", size=12)
    y += 36
    picture.box(Area(left, y, width, 28), "idle", label="the same weights on every data rank", round_by=0)
    return picture.render()
