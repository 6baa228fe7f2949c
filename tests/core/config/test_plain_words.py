"""What a field expects is said in plain words."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from scaling.core.config.base import BaseConfig
from scaling.core.config.plain_words import expected, first_of, fits, nearest, one_of, shown, with_home


class Size(Enum):
    SMALL = "small"
    LARGE = "large"


class Box(BaseConfig):
    """A box."""


@pytest.mark.parametrize(
    ("annotation", "good", "bad", "words"),
    [
        (int, [1, -2, 1e3, 2**62], ["1", 1.5, True, None, float("inf"), 2**63], "a whole number"),
        (float, [1, 0.5, 10**300], ["1", False, 10**400, float("nan"), float("inf"), None], "a number"),
        (bool, [True, False], [0, 1, "true", None], "true or false"),
        (str, ["", "a"], [1, None, ["a"]], "text"),
        (Path, ["a", Path("a")], ["", 1, None], "a path"),
        (Size, ["small", Size.LARGE], ["SMALL", 1, None], "one of small or large"),
        (Literal["a", 1], ["a", 1], ["1", True], "one of a or 1"),
        (list[int], [[], [1, 2]], [1, ["a"], [None]], "a list, each item a whole number"),
        (list[list[str]], [[["a"]]], [["a"]], "a list, each item a list, each item text"),
        (list[Annotated[int, Field(gt=0)]], [[1]], [["a"]], "a list, each item a whole number greater than 0"),
        (dict[str, float], [{}, {"a": 1}], [{"a": "b"}, []], "a mapping from text to a number"),
        (int | None, [1, None], ["1"], "a whole number, or null"),
        (list[int] | Box | None, [[1], {}, Box(), None], ["a"], "a list, each item a whole number or a section"),
        (Any, [1, "a", None], [], "a value"),
    ],
)
def test_kinds_are_told_apart_and_named(annotation: Any, good: list[Any], bad: list[Any], words: str) -> None:
    assert [value for value in good if not fits(annotation, value)] == []
    assert [value for value in bad if fits(annotation, value)] == []
    assert expected(annotation).startswith(words)


def test_lists_of_options_read_like_a_sentence() -> None:
    assert [one_of(["a"]), one_of(["a", "b"]), one_of(["a", "b", "c"])] == ["a", "one of a or b", "one of a, b or c"]


def test_the_first_of_many_are_named_and_the_others_counted() -> None:
    assert first_of(["a", "b"], 2) == "a, b"
    assert first_of(["a", "b", "c", "d"], 2) == "a, b and 2 more"
    assert first_of(["a", "b", "c"], 2, what="tensors") == "a, b and 1 more tensors"


def test_the_nearest_word_ignores_case_and_dashes() -> None:
    known = ["model_parallel_size", "pipe_parallel_size", "Precision"]
    assert nearest("Model-Parallel-Size", known) == "model_parallel_size"
    assert nearest("precison", known) == "Precision"
    assert nearest("zzz", known) is None


def test_values_are_shown_on_one_short_line_without_what_is_inside_sections() -> None:
    assert [shown(value) for value in (None, True, Size.SMALL, Path("a"), [1, {"k": "secret"}], {"k": "secret"})] == [
        "null",
        "true",
        "'small'",
        "'a'",
        "[1, a section]",
        "a section",
    ]
    assert shown(list(range(20))) == "[0, 1, 2, 3, 4, 5, 6, 7, ...]"
    assert len(shown("x" * 1000)) == 80


def test_only_paths_are_looked_for_in_the_home_folder() -> None:
    home = str(Path.home())
    assert with_home(Path | None, "~/x") == f"{home}/x"
    assert with_home(list[Path], ["~/x", "y"]) == [f"{home}/x", "y"]
    assert with_home(str, "~/x") == "~/x"
    assert with_home(Path | None, None) is None
