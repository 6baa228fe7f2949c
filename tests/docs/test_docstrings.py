"""Docstrings are shown as they stand."""

from __future__ import annotations

from docs.generator.docstrings import as_markdown, as_restructured_text, attribute_docs


def test_only_code_is_markup() -> None:
    text = "a * b, **not bold**, name_, |x| and `code_ * 2`"
    assert as_restructured_text([text]) == [r"a \* b, \*\*not bold\*\*, name\_, \|x\| and `code_ * 2`", ""]
    assert as_markdown("[b, s] * `a * b` <x>") == r"\[b, s\] \* `a * b` \<x>"


def test_an_indented_block_is_an_example() -> None:
    shown = as_restructured_text(["Do this:", "", "    run --fast", "      more", "", "Then that."])
    assert shown == ["Do this:", "", "", "::", "", "    run --fast", "      more", "", "", "Then that.", ""]


def test_what_is_raised_is_a_list() -> None:
    shown = as_restructured_text(
        ["Raises:", "    OSError: It is *not*", "        there.", "    DataError: `x` is odd."]
    )
    assert shown == ["Raises:", "", r"- `OSError`: It is \*not\*", "  there.", "- `DataError`: `x` is odd.", "", ""]


def test_items_stay_items() -> None:
    shown = as_restructured_text(["There are two:", "- one", "  and its rest", "- another"])
    assert shown == ["There are two:", "", "- one", "  and its rest", "- another", ""]


def test_what_stands_below_a_name_is_said_of_it() -> None:
    source = '''
A = 1
"""The first."""
B: int = 2

class C:
    D = 3
    """The third."""
'''
    assert attribute_docs(source) == {"A": "The first.", "D": "The third."}
