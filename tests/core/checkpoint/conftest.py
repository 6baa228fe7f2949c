"""What holds for all tests of checkpoints."""

from __future__ import annotations

import pytest

from scaling.core import faults


@pytest.fixture(autouse=True)
def fresh_faults() -> None:
    """Count the passages of fault points from 1 in every test."""
    faults.forget_passages()
