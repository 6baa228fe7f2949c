"""Logits of a cut vocabulary are put together on the first model rank."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from torch import Tensor

from scaling.core.collectives import ops
from scaling.core.errors import LayoutError
from scaling.core.nn.logits import gather_vocabulary, gathered_bytes
from scaling.core.nn.place import Place
from scaling.core.nn.shard import padded_shard
from tests.distributed import run_distributed
from tests.reference.worlds import connected, random, view_of


@torch.inference_mode()
def gather_in_parts(rank: int, world_size: int) -> None:
    with connected(model=world_size) as topology:
        place = Place(topology)
        for vocabulary, positions in ((11, 3), (11, 0), (2, 1), (8, 2)):
            whole = random(positions, vocabulary, seed=1, dtype=torch.float32)
            shard = padded_shard(vocabulary, world_size, rank, dim=0)
            part = whole[:, shard.offset : shard.offset + shard.length]
            padding = torch.full((positions, shard.local_length - shard.length), torch.nan)
            for given in (part, torch.cat([part, padding], dim=1)):
                with mock.patch.object(ops, "gather", wraps=ops.gather) as gather:
                    found = gather_vocabulary(given, place, vocabulary)
                assert (found is not None) == (rank == 0)
                assert found is None or torch.equal(found, whole)
                sent = [sent_bytes(call.args[0]) for call in gather.call_args_list]
                assert sum(sent) * (world_size - 1) == gathered_bytes(vocabulary, world_size, 4) * positions


def sent_bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_the_first_rank_has_the_whole_vocabulary_and_no_other(ranks: int) -> None:
    if ranks == 1:
        gather_in_parts(0, 1)
    else:
        run_distributed(gather_in_parts, ranks)


def test_parts_of_another_vocabulary_are_refused() -> None:
    with pytest.raises(LayoutError, match=r"model rank 3 of 4 has logits of 1 tokens, but .* of 11 has 2"):
        gather_vocabulary(torch.zeros(1, 1), Place(view_of(3, model=4)), 11)
