"""The language-model suite: its public names, loaded when first used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scaling.core import load_on_use

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

load_on_use(__name__)
