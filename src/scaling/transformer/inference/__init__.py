"""Inference: load a checkpoint into one process, score and generate text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scaling.core import load_on_use

if TYPE_CHECKING:
    from scaling.transformer.inference.generation.sampling import Sampling as Sampling
    from scaling.transformer.inference.module import Opened as Opened
    from scaling.transformer.inference.module import TransformerInferenceModule as TransformerInferenceModule

load_on_use(__name__)
