"""Configurations are read as YAML 1.2 or JSON with comments; what could surprise is refused with its line."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling.core.config import yaml_text
from scaling.core.config.yaml_text import MAX_CHARACTERS, dump_yaml, parse_value, parse_yaml
from scaling.core.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        ("-2.5", -2.5),
        (".5", 0.5),
        ("1.", 1.0),
        ("12", 12),
        ("1_000_000", 1_000_000),
        ("017", 17),
        ("0o17", 15),
        ("0x1F", 31),
        ("-.inf", float("-inf")),
        ("true", True),
        ("False", False),
        ("no", "no"),
        ("on", "on"),
        ("12:30:45", "12:30:45"),
        ("2020-01-01", "2020-01-01"),
        ("null", None),
        ("~", None),
        ("", None),
        ("'1'", "1"),
        ("[1, two, {a: b}]", [1, "two", {"a": "b"}]),
        ("a b", "a b"),
    ],
)
def test_values_are_those_of_yaml_1_2(text: str, value: Any) -> None:
    assert parse_value(text) == value
    assert type(parse_value(text)) is type(value)


def test_json_with_comments_tabs_and_trailing_commas_loads() -> None:
    text = """
    // first
    # second
    {
    \t"a": 1, // one
    \t"b": [true, null,], # two
    \t"url": "https://x//y", // "quoted"
    \t"c": {"d": "#no // comment"},// last
    }
    """
    expected = {"a": 1, "b": [True, None], "url": "https://x//y", "c": {"d": "#no // comment"}}
    assert parse_yaml(text) == (expected, [])


def test_slashes_in_yaml_are_no_comments() -> None:
    assert parse_yaml("a: x // y\nb: https://z") == ({"a": "x // y", "b": "https://z"}, [])


def test_nothing_is_an_empty_configuration() -> None:
    assert parse_yaml("# only a comment\n") == ({}, [])


def test_repeated_keys_are_all_reported_with_their_lines() -> None:
    _, problems = parse_yaml("a:\n  b: 1\n  c: 2\n  b: 3\nd: [{e: 1, e: 2}]\na: 0\n")
    assert [str(problem) for problem in problems] == [
        "a.b: is given twice, in lines 2 and 4; remove one of them",
        "d.0.e: is given twice, in lines 5 and 5; remove one of them",
        "a: is given twice, in lines 1 and 6; remove one of them",
    ]
    with pytest.raises(ConfigError, match=r"a: is given twice"):
        parse_value("{a: 1, a: 2}")


def test_anchors_and_merge_keys_share_values() -> None:
    text = "base: &b {x: 1, y: 2}\nmore: {<<: *b, y: 3}\nboth: {<<: [{x: 0}, *b]}\nsame: *b"
    value, problems = parse_yaml(text)
    assert problems == []
    assert (value["more"], value["both"]) == ({"x": 1, "y": 3}, {"x": 0, "y": 2})
    assert value["same"] is not value["base"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1, 2", r"not valid YAML \(line 1, column 9\)"),
        ("a: [1, 2\nb: 3\n", r"not valid YAML \(line 2, column 2, in what begins in line 1\)"),
        ("a: 'b\nc: 3\n", r"not valid YAML \(line 3, column 1, in what begins in line 1\)"),
        ("a: 1\n\tb: 2", r"not valid YAML \(line 2, column 1\): .*; indent with spaces"),
        ("a: !!python/object/apply:os.system ['x']", r"line 1, column 4\): the tag .*os\.system is not allowed"),
        ("a: !!python/name:os.system x", r"the tag .* is not allowed"),
        ("a: !!binary x", r"the tag .* is not allowed"),
        ("a: !!set {x}", r"the tag .* is not allowed"),
        ("? [1]\n: 2", r"line 1, column 3\): a key must be text"),
        ("a: {<<: 1}", r"<< needs a mapping"),
        ("a: &x [*x]", r"an alias refers to the value that contains it"),
        ("a: *x", r"undefined alias"),
        ("- 1", r"must be KEY: VALUE lines"),
        ("text", r"must be KEY: VALUE lines"),
        ("a: 1\n---\nb: 2", r"\(line 2, .*\): expected a single document in the stream, but found another document"),
        ("a: &x 1\nb: &x 2", r"\(line 2, .* in what begins in line 1\): found duplicate anchor 'x'"),
        ("a: 1\nb: \x01", r"not valid YAML \(line 2, column 4\): the character U\+0001 is not allowed$"),
        ("[" * 5000, r"nested too deeply"),
        ("a: " + "x" * MAX_CHARACTERS, r"characters; \d+ is the limit"),
    ],
)
def test_text_that_is_no_configuration_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_yaml(text, source="file.yml")


def test_aliases_cannot_fill_the_memory() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    with pytest.raises(ConfigError, match="more than 200000 values"):
        parse_yaml("\n".join(lines))


def test_every_value_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "k: [a, [b, c], {d: 1}]"  # two mappings of a key and a value, two lists, three texts
    for limit, fits in ((10, True), (9, False)):
        monkeypatch.setattr(yaml_text, "MAX_VALUES", limit)
        with nullcontext() if fits else pytest.raises(ConfigError, match="more than 9 values"):
            parse_yaml(text)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abc01.-~ #", min_size=1), inner, max_size=4),
    max_leaves=10,
)


@given(st.dictionaries(st.text("abc=<:1e-"), PLAIN, max_size=5))
def test_what_is_written_reads_back_as_the_same_data(value: dict[str, Any]) -> None:
    assert parse_yaml(dump_yaml(value)) == (value, [])


@pytest.mark.parametrize("text", ["1e-4", "no", "on", "12:30", "null", "~", "1_0", "0o7", "2020-01-01", "", "<<", "="])
def test_text_that_looks_like_something_else_is_quoted(text: str) -> None:
    assert parse_yaml(dump_yaml({"a": text})) == ({"a": text}, [])


def test_plain_lists_are_written_on_one_line_and_others_item_by_item() -> None:
    assert dump_yaml({"a": [1, 2]}) == "a: [1, 2]\n"
    assert dump_yaml({"a": [{"b": 1}]}) == "a:\n- b: 1\n"
