"""The language-model suite: its public names, loaded when first used so that what needs no torch starts without it."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scaling.transformer.config.architecture import Precision as Precision
    from scaling.transformer.config.architecture import TransformerArchitectureConfig as TransformerArchitectureConfig
    from scaling.transformer.config.root import TransformerConfig as TransformerConfig
    from scaling.transformer.data.load import load_datasets as load_datasets
    from scaling.transformer.data.prepare import prepare_data as prepare_data
    from scaling.transformer.data.text_dataset import TextDataset as TextDataset
    from scaling.transformer.data.tokenizer import Tokenizer as Tokenizer
    from scaling.transformer.data.tokenizer import train_tokenizer as train_tokenizer
    from scaling.transformer.inference.module import TransformerInferenceModule as TransformerInferenceModule
    from scaling.transformer.inference.sampling import Sampling as Sampling
    from scaling.transformer.io import TransformerIO as TransformerIO
    from scaling.transformer.launch import launch_training as launch_training
    from scaling.transformer.losses import CrossEntropyLoss as CrossEntropyLoss
    from scaling.transformer.model import layer_specs as layer_specs

_HOMES: Mapping[str, str] = {
    "TransformerConfig": "config.root",
    "TransformerArchitectureConfig": "config.architecture",
    "Precision": "config.architecture",
    "layer_specs": "model",
    "TransformerIO": "io",
    "CrossEntropyLoss": "losses",
    "launch_training": "launch",
    "prepare_data": "data.prepare",
    "load_datasets": "data.load",
    "TextDataset": "data.text_dataset",
    "Tokenizer": "data.tokenizer",
    "train_tokenizer": "data.tokenizer",
    "TransformerInferenceModule": "inference.module",
    "Sampling": "inference.sampling",
}

__all__ = list(_HOMES)  # the table above is the list


def __getattr__(name: str) -> Any:
    try:
        home = _HOMES[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
