"""The configuration of a language model's training: sections, and the checks between them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scaling.core import load_on_use

if TYPE_CHECKING:
    from scaling.transformer.config.architecture import InitializationConfig as InitializationConfig
    from scaling.transformer.config.architecture import TransformerArchitectureConfig as TransformerArchitectureConfig
    from scaling.transformer.config.attention_kinds import AttentionKindConfig as AttentionKindConfig
    from scaling.transformer.config.attention_kinds import RotaryConfig as RotaryConfig
    from scaling.transformer.config.choices import ActivationFunction as ActivationFunction
    from scaling.transformer.config.choices import DropoutStream as DropoutStream
    from scaling.transformer.config.choices import InitializationScheme as InitializationScheme
    from scaling.transformer.config.choices import MLPType as MLPType
    from scaling.transformer.config.choices import NormPlacement as NormPlacement
    from scaling.transformer.config.choices import Precision as Precision
    from scaling.transformer.config.data import Corpus as Corpus
    from scaling.transformer.config.data import DataConfig as DataConfig
    from scaling.transformer.config.finetuning import AdapterConfig as AdapterConfig
    from scaling.transformer.config.finetuning import BitfitBiasConfig as BitfitBiasConfig
    from scaling.transformer.config.finetuning import IA3Config as IA3Config
    from scaling.transformer.config.finetuning import SoftpromptConfig as SoftpromptConfig
    from scaling.transformer.config.former import EmbeddingHeadConfig as EmbeddingHeadConfig
    from scaling.transformer.config.former import PoolingMethod as PoolingMethod
    from scaling.transformer.config.former import UMuPConfig as UMuPConfig
    from scaling.transformer.config.root import TransformerConfig as TransformerConfig
    from scaling.transformer.config.training import ContrastiveLossConfig as ContrastiveLossConfig
    from scaling.transformer.config.training import CrossEntropyLossConfig as CrossEntropyLossConfig
    from scaling.transformer.config.training import LossFunctionConfig as LossFunctionConfig
    from scaling.transformer.config.training import TrainingConfig as TrainingConfig
    from scaling.transformer.config.training import TrainingGroupConfig as TrainingGroupConfig

load_on_use(__name__)
