"""What becomes of a record that is longer than a sequence."""

from __future__ import annotations

from enum import Enum


class TooLong(str, Enum):
    """What becomes of a record that is longer than a sequence."""

    REFUSE = "refuse"
    DROP = "drop"
    CUT_RIGHT = "cut_right"
    CUT_LEFT = "cut_left"
