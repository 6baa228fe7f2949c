"""RecordDataset: records of fine-tuning data as rows of equal length, in which each record stays whole."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import final

from scaling.core import BaseDataset, DataError, MicroBatch
from scaling.transformer.data.batch import TextCollator, TextSample
from scaling.transformer.data.bins import WINDOW
from scaling.transformer.data.record_rows import Records, RowRules, lay, plan_rows
from scaling.transformer.data.records.budget import TooLong
from scaling.transformer.data.split import Part, Split


@final
class RecordDataset(BaseDataset[TextSample]):
    """Rows of whole records, each of s inputs and s targets, which are the inputs shifted by one token.

    Which records share a row is computed once, from their lengths; the loader shuffles the rows.

    Raises:
        DataError: A record is too long, and `rules` refuse such records.
    """

    def __init__(
        self, records: Records, rules: RowRules, *, collator: TextCollator, name: str, split: Split | None = None
    ) -> None:
        self._records = records
        self._rules = rules
        self._collator = collator
        self.name = name
        self._split = split or Split()
        self.plan = plan_rows(records, rules, self._split, name=name)

    def __len__(self) -> int:
        return len(self.plan.rows)

    def __getitem__(self, index: int) -> TextSample:
        """Return a row.

        Raises:
            IndexError: There is no such row.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)} in {self.name}")
        numbers = self.plan.rows.row(index)
        return lay(numbers, [self._records.read(number) for number in numbers], self._rules, name=self.name)

    def collate(self, samples: Sequence[TextSample], positions: Sequence[int], valid: Sequence[bool]) -> MicroBatch:
        """Make one micro-batch of (TextInputs, TextTargets).

        Raises:
            DataError: A token lies outside the vocabulary.
        """
        return self._collator.collate(samples, positions, valid)

    def fingerprint(self) -> str:
        """Return a digest of the records and of everything that decides the contents of a row."""
        # The treatment of records that are too long decides nothing where there are none.
        rules = self._rules if self.plan.too_long else replace(self._rules, too_long=TooLong.REFUSE)
        decided = f"{rules} {self._split} window {WINDOW}"
        return hashlib.sha256(f"{self._records.fingerprint()} {decided}".encode()).hexdigest()[:32]

    def require_sequences(self) -> None:
        """Refuse a data set that makes no row at all.

        Raises:
            DataError: No record can be used.
        """
        if len(self) == 0:
            part = "" if self._split.part is Part.ALL else f" in the {self._split.part.value} part"
            raise DataError(
                f"{self.name}: none of {len(self._records)} records can be used{part} ({self.left_out() or 'none'} "
                "left out); give more data, longer sequences, or another data.validation_fraction."
            )

    def told(self) -> str:
        """Return how many records are in how many rows, how full these are, and what is left out or cut."""
        plan, rows = self.plan, len(self)
        taken = 100 * plan.places / max(rows * self._rules.capacity, 1)
        left_out = self.left_out()
        return (
            f"{self.name}: {len(plan.rows.members)} records in {rows} sequences, {taken:.1f} % of their places taken"
            f"{'; ' if left_out else ''}{left_out}"
        )

    def left_out(self) -> str:
        """Return how many records are left out or cut, and why; empty where none is."""
        plan, cut = self.plan, self._rules.too_long.value
        counts = {
            f"longer than a sequence ({cut})": plan.too_long,
            "too short to predict anything": plan.too_short,
            "without a token that counts once cut": plan.without_weight,
        }
        return ", ".join(f"{count} {reason}" for reason, count in counts.items() if count)
