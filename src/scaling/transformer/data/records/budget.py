"""Count what becomes of records, and refuse more bad ones than allowed."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Final

from scaling.core import DataError, DataRefusedError
from scaling.transformer.data.records.formats import RecordFormat
from scaling.transformer.data.records.record import Record

NAMED: Final = 20
"""How many bad records are named."""


class TooLong(Enum):
    """Treatment of a record with more tokens than allowed."""

    REFUSE = "refuse"
    """It is a bad record."""
    DROP = "drop"
    """It is left out, and counted."""
    CUT_RIGHT = "cut_right"
    """Its end is cut off."""
    CUT_LEFT = "cut_left"
    """Its beginning is cut off."""


@dataclass
class RecordBudget:
    """Limits of how many records may be bad and how long they may be, and counts of what became of records."""

    max_bad: int = 0
    longest: int | None = None
    """The most tokens that a record may have. None: any number."""
    too_long: TooLong = TooLong.REFUSE
    option: str = "--max-bad"
    """Name of the option that sets `max_bad`, for messages."""
    formats: dict[Path, RecordFormat] = field(default_factory=dict)
    """The format of each file."""
    records: int = 0
    """Records that are trained on."""
    bad: list[str] = field(default_factory=list)
    """The first few bad records, with place and reason."""
    bad_records: int = 0
    without_loss: int = 0
    """Records without a token that counts, left out."""
    dropped: int = 0
    """Records that are too long, left out."""
    cut: int = 0
    """Records that were cut to the longest length."""

    def refuse(self, place: str, reason: str) -> None:
        """Count a bad record.

        Raises:
            DataError: No record may be bad.
            DataRefusedError: There are more than `max_bad`, which is above 0.
        """
        self.bad_records += 1
        if len(self.bad) < NAMED:
            self.bad.append(f"{place}: {reason}")
        if self.bad_records <= self.max_bad:
            return
        if self.max_bad == 0:
            raise DataError(f"{place}: {reason}. Mend it, or skip up to n such records with {self.option} n")
        raise DataRefusedError(
            f"more than {self.max_bad} {'record is' if self.max_bad == 1 else 'records are'} bad, the last one: "
            f"{place}: {reason}. Mend the data, or raise {self.option}"
        )

    def admit(self, record: Record, place: str) -> Record | None:
        """Count a record and return it, cut if it is too long and may be cut; None: it is left out.

        Raises:
            DataError: It is too long and may not be, or is one bad record too many.
        """
        tokens, longest = len(record.tokens), self.longest
        was_cut = False
        if longest is not None and tokens > longest:
            if self.too_long is TooLong.REFUSE:
                reason = f"{tokens} tokens, more than {longest}; shorten it, or choose to drop or cut such records"
                self.refuse(place, reason)
                return None
            if self.too_long is TooLong.DROP:
                self.dropped += 1
                return None
            record, was_cut = cut(record, longest, keep_end=self.too_long is TooLong.CUT_LEFT), True
        if not record.counts:
            self.without_loss += 1
            return None
        self.records += 1
        self.cut += was_cut
        return record

    def left_out(self) -> str:
        """Return in one line what was left out or cut; empty where nothing was."""
        counts = (
            (self.bad_records, "bad"),
            (self.without_loss, "without a token that counts"),
            (self.dropped, "too long"),
        )
        told = [f"{count} {what}" for count, what in counts if count]
        skipped = f"{sum(count for count, _ in counts)} records left out: {', '.join(told)}" if told else ""
        return "; ".join(filter(None, [skipped, f"{self.cut} cut to {self.longest} tokens" if self.cut else ""]))


def cut(record: Record, longest: int, *, keep_end: bool) -> Record:
    """Return the first, or with `keep_end` the last, `longest` tokens of a record."""
    kept = slice(len(record.tokens) - longest, None) if keep_end else slice(longest)
    weights = record.weights[kept].copy()
    weights[:1] = 0
    return Record(record.tokens[kept], weights)
