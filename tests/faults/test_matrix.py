"""Every case of the fault matrix ends as it declares."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.faults import data_cases, layout_cases, security_cases, storage_cases
from tests.faults.engine import Scene
from tests.faults.matrix import Case, judge
from tests.faults.results import RESULTS

CASES = [*storage_cases.cases(), *layout_cases.cases(), *data_cases.cases(), *security_cases.cases()]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_fault_ends_as_declared(case: Case, scene: Scene) -> None:
    result = judge(case, scene)
    RESULTS.append(result)
    assert result.is_good, f"{result.verdict.value}: {result.reason}"


def test_the_matrix_is_whole() -> None:
    assert Counter(case.group for case in CASES) == {"S": 34, "C": 16, "D": 22, "X": 18}
    assert len({str(case) for case in CASES}) == len(CASES)
