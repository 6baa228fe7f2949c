"""Overrides reach any place of plain data, and say what is wrong with them."""

from __future__ import annotations

from typing import Any

import pytest

from scaling.core.config.overrides import apply_overrides


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("a.b=2", {"a": {"b": 2}, "l": [{"x": 1}], "n": None}),
        ("a.c=x=y", {"a": {"b": 1, "c": "x=y"}, "l": [{"x": 1}], "n": None}),
        ("a.b=", {"a": {"b": None}, "l": [{"x": 1}], "n": None}),
        ("a={c: 1e-1}", {"a": {"c": 0.1}, "l": [{"x": 1}], "n": None}),
        ("l.0.x=[1, 2]", {"a": {"b": 1}, "l": [{"x": [1, 2]}], "n": None}),
        ("l.1.x=3", {"a": {"b": 1}, "l": [{"x": 1}, {"x": 3}], "n": None}),
        ("l.0=7", {"a": {"b": 1}, "l": [7], "n": None}),
        ("n.m.o=1", {"a": {"b": 1}, "l": [{"x": 1}], "n": {"m": {"o": 1}}}),
        ("n.0.o=1", {"a": {"b": 1}, "l": [{"x": 1}], "n": [{"o": 1}]}),
        (" a.b = 2 ", {"a": {"b": 2}, "l": [{"x": 1}], "n": None}),
    ],
)
def test_an_override_changes_one_place(override: str, expected: dict[str, Any]) -> None:
    values = {"a": {"b": 1}, "l": [{"x": 1}], "n": None}
    assert apply_overrides(values, [override]) == (expected, [])
    assert values == {"a": {"b": 1}, "l": [{"x": 1}], "n": None}


def test_later_overrides_win() -> None:
    assert apply_overrides({}, ["a.b=1", "a.b=2"]) == ({"a": {"b": 2}}, [])


def test_every_wrong_override_is_reported() -> None:
    overrides = ["x", "=1", "a..b=1", "a.b.c=1", "l.z=1", "l.3=1", "a.b=[1", "a.b=3"]
    values, problems = apply_overrides({"a": {"b": 1}, "l": [1]}, overrides)
    assert values == {"a": {"b": 3}, "l": [1]}
    assert [str(problem) for problem in problems] == [
        "'x' is not KEY=VALUE; write for example topology.data_parallel_size=2",
        "'=1' is not KEY=VALUE; write for example topology.data_parallel_size=2",
        "'a..b=1' is not KEY=VALUE; write for example topology.data_parallel_size=2",
        "a.b.c: cannot be set to '1': a.b is 1, neither a section nor a list",
        "l.z: cannot be set to '1': l is a list; name an item by its number, counted from 0, not by 'z'",
        "l.3: cannot be set to '1': l ends before that; l.1 appends an item",
        "a.b: cannot be set to '[1': this is not valid YAML (line 1, column 3): expected ',' or ']', but got "
        "'<stream end>'",
    ]
