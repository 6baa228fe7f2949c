"""Pictures of data: which rank reads which sample, and which tokens of which documents a sample has."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from scaling.core.data.sampler import BatchGeometry
from scaling.core.svg import MARGIN, Area, Picture
from scaling.transformer.data.boundaries import loss_weights, piece_starts, position_ids
from scaling.transformer.data.packing import Packing

GEOMETRY = BatchGeometry(data_parallel_size=2, micro_batch_size=2, gradient_accumulation_steps=2)
DOCUMENTS = (9, 4, 13, 6)
SEQUENCE = 10


def global_batch() -> str:
    """Draw a global batch, who computes what of it, and what makes the gradients one."""
    size, cell = GEOMETRY.global_batch_size, 34.0
    ranks, steps = range(GEOMETRY.data_parallel_size), range(GEOMETRY.gradient_accumulation_steps)
    picture = Picture(title="Data parallelism: samples of a global batch and the sum of gradients")
    places = {
        place: (rank, step)
        for rank in ranks
        for step in steps
        for place in GEOMETRY.places(micro_batch=step, data_parallel_rank=rank)
    }
    left = MARGIN + 90
    picture.words(MARGIN, MARGIN + 13, f"One step: a global batch of {size} samples", size=15, style="bold")
    top = MARGIN + 30
    picture.words(MARGIN, top + 19, "samples")
    for place, (rank, step) in sorted(places.items()):
        area = Area(left + place * cell, top, cell - 4, 28)
        tip = f"sample {place} of the global batch: data rank {rank}, micro-batch {step}"
        picture.box(area, f"hue{rank}", label=str(place), tip=tip, size=13)
    top += 46
    end = left + size * cell
    for rank in ranks:
        y = top + rank * 52
        picture.words(MARGIN, y + 19, f"data rank {rank}")
        x = left
        for step in steps:
            samples = GEOMETRY.places(micro_batch=step, data_parallel_rank=rank)
            words = f"micro-batch {step}: {samples[0]}-{samples[-1]}"
            picture.box(Area(x, y, 2 * cell + 60, 28), f"hue{rank}", label=words)
            x += 2 * cell + 64
        end = left + len(steps) * (2 * cell + 64)
        bar = Area(end + 146, top - 6, 32, 52 * len(ranks) - 12)
        for at, words in ((end + 26, "gradients"), (bar.right + 26, "update")):
            picture.outline(Area(at, y, 84, 28), "faint", round_by=2)
            picture.words(at + 42, y + 18, words, anchor="middle", size=12)
        picture.line([(end + 2, y + 14), (end + 22, y + 14)], "faint", arrow=True)
        picture.line([(end + 112, y + 14), (bar.x - 4, y + 14)], "green", arrow=True)
        picture.line([(bar.right + 2, y + 14), (bar.right + 22, y + 14)], "green", arrow=True)
    picture.box(bar, "backward0", label="sum")
    picture.words(
        MARGIN,
        bar.bottom + 26,
        "Once a step, a bucket at a time, while the last backward pass still runs.",
        size=12,
        style="faint",
    )
    return picture.render()


def packing() -> str:
    """Draw documents, the sequences that they are cut into, and positions and weights of one of them."""
    plan = Packing(SEQUENCE).plan(lambda start, stop: _lengths()[start:stop], len(DOCUMENTS))
    cell, left = 18.0, MARGIN + 124
    picture = Picture(title=f"Documents packed into sequences of {SEQUENCE} tokens")
    picture.words(
        MARGIN, MARGIN + 13, f"{len(DOCUMENTS)} documents, sequences of {SEQUENCE} tokens", size=15, style="bold"
    )
    y, x = MARGIN + 30, left
    picture.words(MARGIN, y + 17, "documents")
    for number, length in enumerate(DOCUMENTS):
        picture.box(
            Area(x, y, length * cell - 3, 26), f"hue{number}", label=f"{length} tokens", tip=f"document {number}"
        )
        x += length * cell
    y += 44
    for index in range(len(plan)):
        spans = plan.spans(index)
        sizes = [span.stop - span.start for span in spans]
        starts = piece_starts(sizes, SEQUENCE + 1)
        positions = position_ids(starts[None], restart=True)[0]
        weights = loss_weights(starts)
        picture.words(MARGIN, y + 17, f"sequence {index}")
        kinds = [span.document for span in spans for _ in range(span.stop - span.start)]
        offsets = [at for span in spans for at in range(span.start, span.stop)]
        for number, (document, at) in enumerate(zip(kinds, offsets, strict=True)):
            area = Area(left + number * cell, y, cell - 2, 26)
            tip = f"token {at} of document {document}"
            picture.box(area, f"hue{document}", label=f"{at}", tip=tip)
        picture.words(MARGIN, y + 44, "position", size=12, style="faint")
        picture.words(MARGIN, y + 62, "weight of the next", size=12, style="faint")
        for number in range(SEQUENCE):
            middle = left + number * cell + cell / 2 - 1
            picture.words(middle, y + 44, str(positions[number]), anchor="middle", size=12, style="faint")
            picture.words(middle, y + 62, f"{weights[number]:g}", anchor="middle", size=12, style="faint")
        y += 84
    picture.words(
        MARGIN, y, "The last token of a sequence is a target only, and the first input of the next sequence.", size=12
    )
    return picture.render()


def _lengths() -> NDArray[np.int64]:
    return np.array(DOCUMENTS, np.int64)
