"""How far two tensors lie apart: the largest difference, where it is, and relative to what."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling.core import Box
from scaling.core.verify.deviation import (
    FLOOR,
    HeldBoxes,
    distances,
    in_model_order,
    incomplete,
    measure,
    relative_difference,
    shapes,
)


def array(*values: float) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    return np.array(values, dtype=np.float64)


def test_a_rank_that_holds_nothing_is_at_no_distance() -> None:
    found = measure("w", 3, [])
    assert (found.largest, found.absolute, found.different, found.index) == (0.0, 0.0, 0, ())


@given(st.integers(0, 5), st.floats(-10, 10), st.integers(0, 3))
def test_the_largest_difference_is_found_with_its_global_index(place: int, error: float, offset: int) -> None:
    expected = np.arange(1.0, 7.0).reshape(2, 3)
    actual = expected.copy()
    actual.flat[place] += error
    found = measure("w", 3, [(Box((offset, 1), (2, 3)), actual, expected)])
    assert found.rank == 3
    assert found.largest == 6.0
    assert found.absolute == abs(actual.flat[place] - expected.flat[place])
    assert found.different == (actual.flat[place] != expected.flat[place])
    if found.absolute:
        assert found.index == (offset + place // 3, 1 + place % 3)
        assert (found.actual, found.expected) == (actual.flat[place], expected.flat[place])


def test_the_worst_of_several_parts_counts() -> None:
    parts = [
        (Box((0,), (1,)), array(1.0), array(1.5)),
        (Box((4,), (2,)), array(2.0, 7.0), array(2.0, 9.0)),
        (Box((9,), (0,)), array(), array()),
    ]
    for order in (parts, parts[::-1]):
        found = measure("w", 0, order)
        assert (found.index, found.absolute, found.largest, found.different) == ((5,), 2.0, 9.0, 2)


def test_of_elements_that_are_equally_wrong_the_first_is_named() -> None:
    parts = [(Box((start,), (2,)), array(1.0, 1.0), array(1.0, 1.5)) for start in (2, 0)]
    assert measure("w", 0, parts).index == (3,)
    assert measure("w", 0, [(box, actual, actual) for box, actual, _ in parts]).index == (2,)


def test_a_scalar_has_an_empty_index() -> None:
    found = measure("w", 0, [(Box((), ()), np.array(1.0), np.array(3.0))])
    assert (found.index, found.absolute) == ((), 2.0)


@pytest.mark.parametrize("strange", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_differs_from_all_but_itself(strange: float) -> None:
    place = Box((0,), (2,))
    assert measure("w", 0, [(place, array(1.0, strange), array(1.0, strange))]).absolute == 0.0
    assert measure("w", 0, [(place, array(1.0, strange), array(1.0, 2.0))]).absolute == math.inf
    assert measure("w", 0, [(place, array(1.0, 2.0), array(1.0, strange))]).absolute == math.inf


def test_bits_are_told_apart_where_values_are_equal() -> None:
    found = measure("w", 0, [(Box((0,), (1,)), array(-0.0), array(0.0))])
    assert (found.absolute, found.different) == (0.0, 1)


def test_differences_are_relative_to_the_largest_element_on_any_rank() -> None:
    parts = [
        measure("w", 0, [(Box((0,), (1,)), array(1.0), array(1.5))]),
        measure("w", 1, [(Box((1,), (1,)), array(10.0), array(10.0))]),
    ]
    (found,) = distances(parts)
    assert found.relative == 0.05
    assert found.rank == 0


def test_of_ranks_that_are_equally_wrong_the_first_is_named() -> None:
    parts = [measure("w", rank, [(Box((0,), (1,)), array(1.0), array(1.5))]) for rank in (2, 1, 3)]
    (found,) = distances(parts)
    assert found.rank == 1


def test_rounding_is_not_compared_with_itself() -> None:
    """A gradient that is zero but for rounding is small against those of other tensors."""
    parts = [
        measure("large", 0, [(Box((0,), (1,)), array(1.0), array(1.0))]),
        measure("nothing", 0, [(Box((0,), (1,)), array(1e-17), array(-1e-17))]),
    ]
    assert [found.relative for found in distances(parts)] == [0.0, pytest.approx(2e-17 / FLOOR)]


def test_a_difference_from_nothing_is_infinite() -> None:
    (found,) = distances([measure("w", 0, [(Box((0,), (1,)), array(1.0), array(0.0))])])
    assert found.relative == math.inf
    assert relative_difference(1.0, 0.0) == math.inf
    assert relative_difference(0.0, 0.0) == 0.0
    assert relative_difference(math.nan, math.nan) == 0.0
    assert relative_difference(math.nan, 1.0) == math.inf


def test_layers_are_ordered_by_number_and_what_is_in_them_stays_as_it_was_registered() -> None:
    keys = ["layers.10.norm.weight", "layers.2.b", "layers.2.a.11", "layers.2.a.3", "layers.0.x"]
    expected = ["layers.0.x", "layers.2.b", "layers.2.a.11", "layers.2.a.3", "layers.10.norm.weight"]
    assert in_model_order(keys) == expected


def test_distances_come_in_the_order_that_is_asked_for() -> None:
    parts = [measure(key, 0, [(Box((0,), (1,)), array(1.0), array(1.5))]) for key in ("b", "c", "a")]
    assert [found.key for found in distances(parts)] == ["b", "c", "a"]
    assert [found.key for found in distances(parts, ["a", "b", "unknown"])] == ["a", "b", "c"]


def test_what_no_rank_owns_is_found() -> None:
    def held(start: int, *, owned: bool = True) -> HeldBoxes:
        return HeldBoxes(key="w", shape=(4,), boxes=(Box((start,), (2,)),), owned=owned)

    assert list(incomplete([[held(0)], [held(2)], [held(2, owned=False)]])) == []
    assert list(incomplete([[held(0)], [held(2, owned=False)]])) == [("w", Box((2,), (2,)))]
    assert shapes([[held(0)], [held(2)]]) == {"w": (4,)}
