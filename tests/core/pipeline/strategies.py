"""Hypothesis strategies for pipeline tests."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import strategies as st

from scaling.core.pipeline.ring import TokenRing
from scaling.core.pipeline.schedules import ForwardOnly, GPipe, Interleaved1F1B, OneFOneB, Schedule
from scaling.core.pipeline.stage_map import InTurn
from tests.core.pipeline.toy_schedules import VGPipe, VShaped, ZeroBubble

SCHEDULES: list[Callable[[int], Schedule]] = [
    lambda chunks: GPipe(),
    lambda chunks: OneFOneB(),
    Interleaved1F1B,
    lambda chunks: ForwardOnly(InTurn(chunks)),
    lambda chunks: ForwardOnly(VShaped()),
    lambda chunks: VGPipe(),
    lambda chunks: ZeroBubble(),
    TokenRing,
]


@st.composite
def configurations(draw: st.DrawFn) -> tuple[Schedule, int, int]:
    """Draw (schedule, ranks, micro-batches)."""
    schedule = draw(st.sampled_from(SCHEDULES))(draw(st.integers(1, 4)))
    ranks = draw(st.integers(1, 6))
    if isinstance(schedule, Interleaved1F1B):
        return schedule, ranks, ranks * draw(st.integers(1, 4))
    return schedule, ranks, draw(st.integers(1, 20))
