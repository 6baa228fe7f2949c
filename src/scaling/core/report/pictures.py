"""A run's layout as a picture, and its pipeline schedule as planned."""

from __future__ import annotations

from typing import Final

from scaling.core.errors import ConfigError
from scaling.core.pipeline.planned import planned_step
from scaling.core.pipeline.schedule_svg import draw_schedule
from scaling.core.report.markup import Markup, join, tag
from scaling.core.report.reading import Run
from scaling.core.topology.config import TopologyConfig
from scaling.core.topology.layout import Axis, Layout
from scaling.core.topology.layout_svg import draw_layout

_MOST_MICRO_BATCHES: Final = 16
_MOST_RANKS: Final = 1 << 20
"""A larger size is taken for a mistake: nobody has so many ranks."""


def layout_of(run: Run) -> Layout | None:
    """Return the layout in `run.json`; None where there is none, or an impossible one."""
    told = run.about.get("layout")
    if not isinstance(told, dict):
        return None
    sizes = {axis.value: told.get(axis.value, 1) for axis in Axis}
    if any(type(size) is not int or not 1 <= size <= _MOST_RANKS for size in sizes.values()):
        return None
    return Layout(**sizes)


def draw_run(run: Run) -> Markup | None:
    """Return the layout, and below it one step of the pipeline where several ranks form one. Pure."""
    layout = layout_of(run)
    if layout is None:
        return None
    parts = [tag("div", Markup(draw_layout(layout)), class_="picture")]
    topology = (run.config or {}).get("topology")
    if layout.pipe > 1 and isinstance(topology, dict):
        try:
            config = TopologyConfig.from_dict(topology, quiet=True)
        except ConfigError:
            return join(parts)
        step = planned_step(config, most_micro_batches=_MOST_MICRO_BATCHES)
        parts.append(tag("div", Markup(draw_schedule(step, title=_planned(config))), class_="picture"))
    return join(parts)


def _planned(config: TopologyConfig) -> str:
    micro_batches, ranks = config.gradient_accumulation_steps, config.pipe_parallel_size
    cut = f", cut from {micro_batches} micro-batches" if micro_batches > max(_MOST_MICRO_BATCHES, ranks) else ""
    return f"A step as planned ({config.pipe_schedule.value}){cut}"
