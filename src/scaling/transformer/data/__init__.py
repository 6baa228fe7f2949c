"""Text as training data: files to tokens, tokens to packed sequences, sequences to micro-batches."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scaling.core import load_on_use

if TYPE_CHECKING:
    from scaling.transformer.data.load import load_datasets as load_datasets
    from scaling.transformer.data.prepare import prepare_data as prepare_data
    from scaling.transformer.data.records.budget import TooLong as TooLong
    from scaling.transformer.data.records.conversation import TrainOn as TrainOn
    from scaling.transformer.data.records.formats import RecordFormat as RecordFormat
    from scaling.transformer.data.text_dataset import TextDataset as TextDataset
    from scaling.transformer.data.tokenizer import Tokenizer as Tokenizer
    from scaling.transformer.data.tokenizer import train_tokenizer as train_tokenizer

load_on_use(__name__)
