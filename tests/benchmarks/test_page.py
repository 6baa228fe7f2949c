"""The page on performance says what the results say."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest


def test_the_tables_are_those_of_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    page = importlib.import_module("page")
    text = page.PAGE.read_text()
    assert page.written(text) == text
    assert {found[2] for found in page.TABLE.finditer(text)} == set(page.TABLES)
