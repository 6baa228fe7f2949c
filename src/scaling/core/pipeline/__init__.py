"""The pipeline: layers cut into stages, schedules as lists of actions, and the engine that executes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scaling.core.lazy import load_on_use

if TYPE_CHECKING:
    from scaling.core.pipeline.layer_spec import LayerSpec as LayerSpec
    from scaling.core.pipeline.layer_spec import TiedLayerSpec as TiedLayerSpec
    from scaling.core.pipeline.loss import BatchMetric as BatchMetric
    from scaling.core.pipeline.loss import LossFunction as LossFunction
    from scaling.core.pipeline.loss import LossOutput as LossOutput
    from scaling.core.pipeline.loss import StepLoss as StepLoss
    from scaling.core.pipeline.module import ParallelModule as ParallelModule
    from scaling.core.pipeline.planned import planned_step as planned_step
    from scaling.core.pipeline.ring import TokenRing as TokenRing
    from scaling.core.pipeline.ring import predicted_gain as predicted_gain
    from scaling.core.pipeline.ring_engine import RingEngine as RingEngine
    from scaling.core.pipeline.ring_engine import RingWork as RingWork
    from scaling.core.pipeline.schedule_svg import draw_schedule as draw_schedule
    from scaling.core.pipeline.schedule_svg import draw_schedules as draw_schedules

load_on_use(__name__)
