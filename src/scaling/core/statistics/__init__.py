"""Statistics of tensors while a model trains: activations, weights, and the gradients of both."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scaling.core.lazy import load_on_use

if TYPE_CHECKING:
    from scaling.core.statistics.config import Statistic as Statistic
    from scaling.core.statistics.config import TensorStatisticsRecorderConfig as TensorStatisticsRecorderConfig

load_on_use(__name__)
