"""The configuration of a language model's training: sections, and the checks between them."""

from scaling.transformer.config.architecture import DropoutStream as DropoutStream
from scaling.transformer.config.architecture import MLPType as MLPType
from scaling.transformer.config.architecture import Precision as Precision
from scaling.transformer.config.architecture import TransformerArchitectureConfig as TransformerArchitectureConfig
from scaling.transformer.config.data import DataConfig as DataConfig
from scaling.transformer.config.root import TransformerConfig as TransformerConfig
from scaling.transformer.config.training import TrainingConfig as TrainingConfig
from scaling.transformer.config.training import TrainingGroupConfig as TrainingGroupConfig
