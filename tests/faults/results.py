"""The verdicts of this session, for the summary at its end."""

from __future__ import annotations

from tests.faults.matrix import Result

RESULTS: list[Result] = []
