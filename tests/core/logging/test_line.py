"""The line of a step: what it names, what a narrow terminal leaves out first, and pairs that awk can read."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling.core.logging.line import LineField, clock_time, fitted, plain, plain_number, step_fields

METRICS = {
    "training/loss": 3.14159,
    "training/global_grad_norm": 1.23456,
    "training/learning_rate_weights": 3e-4,
    "training/learning_rate_biases": 1e-4,
    "training/tokens_per_second": 1234567.8,
    "training/mfu": 0.4123,
    "training/peak_memory_bytes": 3 * 2**30,
    "training/data_wait_fraction": 0.031,
    "training/consumed_tokens": 1e9,
}
WIDE = (
    "step 40/300  loss 3.1416  grad norm 1.23  lr 3.00e-04  1,234,568 tokens/s  mfu 41.2 %  3.0 GiB  data wait 3 %  "
    "0:02:31 left"
)
PLAIN = (
    "step 40/300 loss 3.1416 grad_norm 1.235 lr 0.0003 tokens_per_second 1234568 mfu 0.4123 memory_gib 3.00 "
    "data_wait 0.031 time_left 0:02:31"
)
FIELDS = step_fields(40, 300, METRICS, seconds_left=151.2)


def test_a_wide_terminal_shows_everything() -> None:
    assert fitted(FIELDS, 200) == WIDE


def test_a_narrow_terminal_leaves_out_the_least_important_fields() -> None:
    assert fitted(FIELDS, 119) == WIDE.replace("  data wait 3 %", "")
    assert fitted(FIELDS, 79) == "step 40/300  loss 3.1416  grad norm 1.23  1,234,568 tokens/s  0:02:31 left"
    assert fitted(FIELDS, 59) == "step 40/300  loss 3.1416  1,234,568 tokens/s  0:02:31 left"
    assert fitted(FIELDS, 30) == "step 40/300  loss 3.1416"
    assert fitted(FIELDS, 4) == "step"
    assert fitted(FIELDS, 0) == ""


fields_of = st.lists(st.integers(1, 12), min_size=1, max_size=9).flatmap(
    lambda lengths: st.permutations(range(len(lengths))).map(
        lambda order: [LineField(f"n{k}", "0", "x" * length, order[k]) for k, length in enumerate(lengths)]
    )
)


@given(fields=fields_of, width=st.integers(0, 120))
def test_a_line_fits_and_keeps_the_most_important_fields_in_their_order(fields: list[LineField], width: int) -> None:
    line = fitted(fields, width)
    assert len(line) <= width
    by_importance = sorted(fields, key=lambda field: field.priority)
    for kept in range(len(fields), 1, -1):  # the longest such line that fits is the one
        chosen = [field for field in fields if field in by_importance[:kept]]
        if len(whole := "  ".join(field.shown for field in chosen)) <= width:
            assert line == whole
            return
    assert line == by_importance[0].shown[:width]


def test_a_plain_line_is_pairs_of_a_name_and_a_value_without_separators() -> None:
    assert plain(FIELDS) == PLAIN
    words = plain(FIELDS).split()
    assert words[::2] == [field.name for field in FIELDS]
    assert all(re.fullmatch("[a-z_]+", name) for name in words[::2])
    assert "," not in plain(FIELDS)


def test_only_what_was_measured_is_shown() -> None:
    assert plain(step_fields(1, 2, {})) == "step 1/2"
    assert plain(step_fields(1, 2, {"training/samples_per_second": 1.5})) == "step 1/2 samples_per_second 1.5"
    assert fitted(step_fields(1, 2, {"training/loss": float("nan")}), 80) == "step 1/2  loss nan"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (1.0, "1"), (1234567.8, "1234568"), (3e-4, "0.0003"), (1e-9, "1e-09"), (-2e4, "-20000")],
)
def test_numbers_are_plain(value: float, text: str) -> None:
    assert plain_number(value) == text


def test_a_duration_has_no_spaces() -> None:
    assert [clock_time(seconds) for seconds in (0.4, 151, 3 * 86400 + 3661)] == ["0:00:00", "0:02:31", "3d1:01:01"]
