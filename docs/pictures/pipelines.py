"""Pictures of the pipeline: schedules beside each other, their messages, and which layers a stage has."""

from __future__ import annotations

from docs.pictures.example import published_plan
from scaling.core import draw_schedule, draw_schedules
from scaling.core.pipeline.actions import Action, Compute
from scaling.core.pipeline.lowering import lower_all
from scaling.core.pipeline.partition import partition
from scaling.core.pipeline.schedules import GPipe, Interleaved1F1B, OneFOneB
from scaling.core.pipeline.simulate import simulate, usual_duration
from scaling.core.svg import MARGIN, Area, Picture

RANKS, MICRO_BATCHES, CHUNKS = 3, 6, 2
WIDTH = 740.0
"""Of a column of text on the site."""
MODEL, SEQUENCE = "llama3.2-1b", 4096


def schedules() -> str:
    """Draw the three schedules of one model: interleaved, a stage is half as long."""

    def half(action: Action) -> float:
        return usual_duration(action) / CHUNKS

    return draw_schedules(
        {
            "pipe_schedule: gpipe": simulate(lower_all(GPipe(), RANKS, MICRO_BATCHES)),
            "pipe_schedule: 1f1b": simulate(lower_all(OneFOneB(), RANKS, MICRO_BATCHES)),
            "pipe_schedule: interleaved_1f1b, pipe_chunks_per_rank: 2": simulate(
                lower_all(Interleaved1F1B(CHUNKS), RANKS, MICRO_BATCHES), duration=half
            ),
        },
        unit="forward passes of all layers of a rank",
        width=WIDTH,
    )


def messages() -> str:
    """Draw what travels in a step of 1F1B, where a message takes a tenth of a forward pass."""

    def duration(action: Action) -> float:
        return usual_duration(action) if isinstance(action, Compute) else 0.1

    step = simulate(lower_all(OneFOneB(), 3, 4), duration=duration)
    return draw_schedule(
        step, title="1F1B and what travels", unit="forward passes of a stage", messages=True, width=WIDTH
    )


def layers_of_stages() -> str:
    """Draw a model's layers as wide as they cost, cut into four stages by two methods."""
    plan, stages, width = published_plan(MODEL, sequence=SEQUENCE), 4, WIDTH - 2 * MARGIN - 10
    costs = plan.costs
    names = ["head" if layer.kind.endswith("head") else str(index) for index, layer in enumerate(plan.layers())]
    picture = Picture(title=f"{MODEL} in {stages} stages by pipe_partition_method")
    y = MARGIN
    for method, found in (
        ("uniform", partition(costs, stages, "uniform")),
        ("balanced", partition(costs, stages, "balanced")),
    ):
        shares = [100 * sum(costs[index] for index in layers) / sum(costs) for layers in found]
        picture.words(MARGIN, y + 13, f"pipe_partition_method: {method}", size=15, style="bold")
        x = MARGIN
        for stage, layers in enumerate(found):
            start = x
            for index in layers:
                length = width * costs[index] / sum(costs)
                tip = f"layer {index} ({names[index]}): {costs[index]:.6g} multiply-adds a token"
                picture.box(Area(x, y + 26, length, 34), f"hue{stage}", label=names[index], tip=tip)
                x += length
            what = f"stage {stage}: {shares[stage]:.0f} %"
            picture.words((start + x) / 2, y + 78, what, anchor="middle", size=12)
        y += 104
    words = f"{MODEL}, {SEQUENCE} tokens; width: multiply-adds; embedding (0) and norm (17) have none"
    picture.words(MARGIN, y + 6, words, size=12, style="faint")
    return picture.render()
