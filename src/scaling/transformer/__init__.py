"""The language-model suite: its public names, loaded when first used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scaling.core import load_on_use

if TYPE_CHECKING:
    from scaling.transformer.config import *
    from scaling.transformer.data import *
    from scaling.transformer.inference import *
    from scaling.transformer.io import TextTargets as TextTargets
    from scaling.transformer.io import TransformerIO as TransformerIO
    from scaling.transformer.launch import launch_training as launch_training
    from scaling.transformer.layers.head import HeadOutput as HeadOutput
    from scaling.transformer.losses import CrossEntropyLoss as CrossEntropyLoss
    from scaling.transformer.model import layer_specs as layer_specs

load_on_use(__name__)
