"""Synthetic data with everything that can make layouts differ: packing, padding, samples without a valid token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from scaling.core import BaseDataset, DataError, MicroBatch
from scaling.transformer.config.root import TransformerConfig
from scaling.transformer.data.batch import TextCollator, TextSample
from scaling.transformer.data.packing import Span
from scaling.transformer.data.record_prefixes import row_rules
from scaling.transformer.data.record_rows import RowRules, lay
from scaling.transformer.data.records.record import Record

_SHORT_EVERY = 5
_EMPTY_EVERY = 7


def synthetic_text(
    config: TransformerConfig, samples: int = 1000, *, seed: int = 0
) -> SyntheticText | SyntheticRecords:
    """Return synthetic data for the vocabulary, sequence length and kind of data of a configuration."""
    architecture = config.transformer_architecture
    if (settings := config.data.records) is not None:
        rules = row_rules(architecture, settings, padding=config.data.eod_token_id or 0)
        return SyntheticRecords(samples, rules, TextCollator(architecture.vocab_size), seed)
    collator = TextCollator(
        architecture.vocab_size,
        reset_attention_mask=architecture.reset_attention_mask,
        reset_position_ids=architecture.reset_position_ids,
    )
    return SyntheticText(
        samples, architecture.sequence_length, collator, eod_token_id=config.data.eod_token_id or 0, seed=seed
    )


@final
@dataclass(frozen=True)
class SyntheticText(BaseDataset[TextSample]):
    """Sequences of random tokens, each a pure function of its index.

    Most hold several documents of random length. One in five ends early and is padded; one in seven is all padding, so
    that there are micro-batches in which nothing counts. However short sequences are, some documents have two tokens:
    an input and one to be predicted.
    """

    length: int
    sequence_length: int
    collator: TextCollator
    eod_token_id: int = 0
    seed: int = 0

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> TextSample:
        if not 0 <= index < self.length:
            raise DataError(f"sample {index} is not one of the {self.length} synthetic samples")
        stream = np.random.default_rng((self.seed, index))
        total = self.sequence_length + 1
        tokens = stream.integers(0, self.collator.vocab_size, total)
        used = total
        if index % _EMPTY_EVERY == _EMPTY_EVERY - 1:
            used = 0
        elif index % _SHORT_EVERY == _SHORT_EVERY - 1:
            used = int(stream.integers(min(2, total - 1), total))
        spans, place, document = [], 0, 0
        while place < used:
            taken = min(int(stream.integers(1, max(3, total // 2))), used - place)
            spans.append(Span(document, 0, taken))
            place, document = place + taken, document + 1
        return TextSample.of_documents(tokens, tuple(spans), "synthetic data", eod_token_id=self.eod_token_id)

    def collate(self, samples: Sequence[TextSample], positions: Sequence[int], valid: Sequence[bool]) -> MicroBatch:
        """Make a micro-batch as a data set of real text does."""
        return self.collator.collate(samples, positions, valid)

    def fingerprint(self) -> str:
        """Return a description: the data are made, not read."""
        return f"synthetic {self}"


@final
@dataclass(frozen=True)
class SyntheticRecords(BaseDataset[TextSample]):
    """Rows of records of random tokens and weights, each a pure function of its index; one in seven counts nowhere."""

    length: int
    rules: RowRules
    collator: TextCollator
    seed: int = 0

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> TextSample:
        if not 0 <= index < self.length:
            raise DataError(f"row {index} is not one of the {self.length} synthetic rows")
        stream = np.random.default_rng((self.seed, index))
        weighs = index % _EMPTY_EVERY != _EMPTY_EVERY - 1
        records: list[Record] = []
        room = self.rules.capacity - int(stream.integers(0, self.rules.capacity // 4 + 1))
        while (longest := room - self.rules.placeholders) > 0 and (self.rules.packing or not records):
            size = int(stream.integers(1, longest + 1))
            weights = stream.choice(np.array([0, 0.5, 1], np.float32), size) * np.float32(weighs)
            records.append(Record(stream.integers(0, self.collator.vocab_size, size), weights))
            room -= self.rules.placeholders + size
        return lay(range(len(records)), records, self.rules, name="synthetic records")

    def collate(self, samples: Sequence[TextSample], positions: Sequence[int], valid: Sequence[bool]) -> MicroBatch:
        """Make a micro-batch as a data set of real records does."""
        return self.collator.collate(samples, positions, valid)

    def fingerprint(self) -> str:
        """Return a description: the data are made, not read."""
        return f"synthetic {self}"
