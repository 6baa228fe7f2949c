"""Training below the trainer: the description of a training, and the object made from it that takes steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scaling.core.lazy import load_on_use

if TYPE_CHECKING:
    from scaling.core.training.data import TrainingData as TrainingData
    from scaling.core.training.learner import Learner as Learner
    from scaling.core.training.loading import Loading as Loading
    from scaling.core.training.recipe import Recipe as Recipe

load_on_use(__name__)
