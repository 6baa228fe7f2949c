"""Training and validation documents never mix, whoever asks and in whatever pieces."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from scaling.transformer.data.split import Part, Split


def members(part: Part, fraction: float, count: int = 20_000) -> NDArray[np.bool_]:
    return Split(part, fraction).contains(0, count)


def test_each_document_is_in_exactly_one_part() -> None:
    assert (members(Part.TRAIN, 0.1) ^ members(Part.VALIDATION, 0.1)).all()


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5])
def test_the_validation_part_has_about_the_fraction_asked_for(fraction: float) -> None:
    assert members(Part.VALIDATION, fraction).mean() == pytest.approx(fraction, abs=0.01)


def test_a_document_keeps_its_part_when_others_are_asked_about_or_added() -> None:
    whole = members(Part.VALIDATION, 0.3, 1000)
    pieces = np.concatenate([Split(Part.VALIDATION, 0.3).contains(start, start + 100) for start in range(0, 1000, 100)])
    assert (whole == pieces).all()
    assert (whole == members(Part.VALIDATION, 0.3, 2000)[:1000]).all()


def test_a_larger_fraction_only_adds_documents_to_validation() -> None:
    assert (members(Part.VALIDATION, 0.1) <= members(Part.VALIDATION, 0.2)).all()


def test_the_division_is_the_same_for_ever() -> None:
    assert np.flatnonzero(members(Part.VALIDATION, 0.1, 40)).tolist() == [2, 32, 33]


def test_without_a_part_every_document_is_in() -> None:
    assert Split().contains(5, 9).tolist() == [True] * 4
