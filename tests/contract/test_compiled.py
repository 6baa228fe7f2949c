"""Compiled layers are the same run, in every layout."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.contract.layouts import LAYERS, SP, LayoutCase, interleaved
from tests.contract.runs import Reference
from tests.contract.test_layouts import FEW, assert_same, job, reference

__all__ = ["reference"]  # a fixture

ON = {"compile": "on"}


@pytest.mark.slow  # compiling takes a minute in every process
@pytest.mark.parametrize(
    ("model", "case"),
    [
        ("llama", LayoutCase(1, 1, 1, 8, ON)),
        ("llama", LayoutCase(2, 1, 1, 3, {**ON, **LAYERS})),
        ("gpt", LayoutCase(2, 1, 1, 3, {**ON, **interleaved(2), **LAYERS})),
        ("sandwich", LayoutCase(1, 1, 2, 12, {**ON, **SP})),
    ],
)
def test_compiled_layers_are_the_same_run(
    model: str, case: LayoutCase, reference: Callable[[str, int], Reference]
) -> None:
    assert_same(model, [job(model, case, FEW)], reference(model, FEW))
