"""Where stages live."""

from __future__ import annotations

import pytest

from scaling.core.errors import LayoutError
from scaling.core.pipeline.stage_map import InTurn, StageMap, StagePlacement
from tests.core.pipeline.toy_schedules import VShaped


@pytest.mark.parametrize("placement", [InTurn(), InTurn(3), VShaped()])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_a_stage_is_one_of_the_chunks_of_its_rank(placement: StagePlacement, ranks: int) -> None:
    stages = placement.over(ranks)
    assert sorted(stage for rank in range(ranks) for stage in stages.stages_of(rank)) == list(range(len(stages)))
    for stage in range(len(stages)):
        assert stages.stages_of(stages.rank_of(stage))[stages.chunk_of(stage)] == stage
    assert stages.last == len(stages) - 1


def test_stages_are_dealt_to_the_ranks_in_turn() -> None:
    assert InTurn(2).over(2) == StageMap((0, 1, 0, 1))
    assert [InTurn(3).over(4).chunk_of(stage) for stage in range(12)] == [stage // 4 for stage in range(12)]


def test_a_rank_without_a_stage_is_refused() -> None:
    with pytest.raises(LayoutError, match="at least 1 stage, not 0"):
        InTurn(0).over(2)
