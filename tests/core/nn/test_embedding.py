"""The embedding cut by vocabulary against a lookup in the whole table."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from scaling.core.errors import LayoutError
from scaling.core.nn.embedding import PositionEmbedding, VocabParallelEmbedding
from scaling.core.nn.init import fill
from scaling.core.nn.place import Place
from scaling.core.nn.shard import padded_shard
from tests.distributed import run_distributed
from tests.reference.sharding import compare_layer
from tests.reference.worlds import connected, view_of

DOUBLE = torch.float64

VOCABULARIES = (1, 4, 5, 7, 8, 101)
"""Over four ranks: whole ranks of padding (1, 5), padding at the end (7, 101), and none (4, 8)."""


def compare_embeddings(rank: int, world_size: int) -> None:
    with connected(model=world_size) as topology:
        for vocabulary in VOCABULARIES:
            ids = torch.arange(24).view(3, 8) % vocabulary
            for sequence_parallel in (False, True):
                layer = VocabParallelEmbedding(vocabulary, 6, place=Place(topology, DOUBLE, sequence_parallel))
                assert layer.weight.shape == (-(-vocabulary // world_size), 6)
                compare_layer(
                    layer,
                    lambda weights, ids: F.embedding(ids, weights["weight"]),
                    ids,
                    topology,
                    cut_output=1 if sequence_parallel else None,
                    what=f"{vocabulary} ids, sequence-parallel {sequence_parallel}:",
                )


@pytest.mark.parametrize("world_size", [1, 4])
def test_every_id_finds_its_row_and_sends_its_gradient_there(world_size: int) -> None:
    if world_size == 1:
        compare_embeddings(0, 1)
    else:
        run_distributed(compare_embeddings, world_size)


@given(size=st.integers(1, 300), parts=st.integers(1, 12))
def test_padded_shards_cover_the_vocabulary_once_in_equal_local_lengths(size: int, parts: int) -> None:
    shards = [padded_shard(size, parts, index, dim=0) for index in range(parts)]
    covered = [row for shard in shards for row in range(shard.offset, shard.offset + shard.length)]
    assert covered == list(range(size))
    assert {shard.local_length for shard in shards} == {-(-size // parts)}
    assert all(shard.length <= shard.local_length for shard in shards)


def look_up_foreign_ids(rank: int, world_size: int) -> None:
    with connected(model=world_size) as topology:
        layer = VocabParallelEmbedding(5, 3, place=Place(topology))
        fill(layer)
        assert layer.weight.any()
        assert not layer(torch.tensor([[-1, 5, 6, 1000]])).any()


def test_ids_outside_the_vocabulary_give_zeros_over_ranks() -> None:
    run_distributed(look_up_foreign_ids, 2)


def test_an_embedding_starts_as_a_standard_normal_whatever_the_cut() -> None:
    whole = VocabParallelEmbedding(1001, 64)
    layers = [VocabParallelEmbedding(1001, 64, place=Place(view_of(rank, model=4))) for rank in range(4)]
    for layer in (whole, *layers):
        fill(layer)
    assert float(whole.weight.detach().std()) == pytest.approx(1.0, rel=0.02)
    parts = [layer.weight.detach() for layer in layers]
    assert torch.equal(torch.cat(parts)[:1001], whole.weight)
    assert not torch.cat(parts)[1001:].any()


def compare_positions(rank: int, world_size: int) -> None:
    with connected(model=world_size) as topology:
        for sequence_parallel in (False, True):
            layer = PositionEmbedding(9, 6, place=Place(topology, DOUBLE, sequence_parallel))
            compare_layer(
                layer,
                lambda weights, ids: F.embedding(ids, weights["weight"]),
                torch.arange(8).expand(3, 8),
                topology,
                cut_output=1 if sequence_parallel else None,
                what=f"positions, sequence-parallel {sequence_parallel}:",
            )


def test_every_position_finds_its_vector_and_sends_its_gradient_there() -> None:
    compare_positions(0, 1)
    run_distributed(compare_positions, 2)


def test_a_position_beyond_the_table_is_refused() -> None:
    with pytest.raises(LayoutError, match=r"position 4 is beyond the 4 learned positions; use shorter sequences"):
        PositionEmbedding(4, 2)(torch.arange(5).unsqueeze(0))
