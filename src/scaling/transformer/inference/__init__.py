"""Inference: open a checkpoint, in one process or over ranks; score texts, continue them, answer in a chat."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scaling.core import load_on_use

if TYPE_CHECKING:
    from scaling.transformer.inference.generation.sampling import Sampling as Sampling
    from scaling.transformer.inference.module import Opened as Opened
    from scaling.transformer.inference.module import TransformerInferenceModule as TransformerInferenceModule

load_on_use(__name__)
