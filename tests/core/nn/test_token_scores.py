"""Scores of tokens are those of whole logits, whatever the chunks, and however the vocabulary is cut."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from scaling.core import LogitTerm, Place, Topology, all_gather_vocabulary, linear_logits, linear_token_scores
from scaling.core.topology.layout import Axis
from tests.distributed import run_distributed
from tests.reference.worlds import connected, random

POSITIONS, FEATURES = 7, 6


def case(vocabulary: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, LogitTerm, Tensor, Tensor]:
    """Return hidden states, a weight of which rows are alike, a term beside it, a bias and targets."""
    hidden, weight = random(POSITIONS, FEATURES, seed=0, dtype=dtype), random(vocabulary, FEATURES, seed=1, dtype=dtype)
    term = LogitTerm(random(POSITIONS, 2, seed=2, dtype=dtype), random(vocabulary, 2, seed=3, dtype=dtype))
    bias = random(vocabulary, seed=4, dtype=dtype)
    targets = torch.arange(POSITIONS) % vocabulary
    for rows in (weight, term.weight, bias):
        rows[-1] = rows[1]  # the last rank's token is as likely as the first one's
    return hidden, weight, term, bias, targets


def expected(vocabulary: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    hidden, weight, term, bias, targets = case(vocabulary, dtype)
    logits = linear_logits(hidden, weight, bias, terms=[term], scale=0.7, cap=2.0)
    logs = logits.log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1)
    rounded = logits.to(dtype)
    return logs, torch.stack([(row == row.max()).nonzero()[0, 0] for row in rounded]), logits


@pytest.mark.parametrize("chunk_size", [1, 3, 100])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_scores_are_those_of_all_logits(chunk_size: int, dtype: torch.dtype) -> None:
    hidden, weight, term, bias, targets = case(11, dtype)
    found = linear_token_scores(
        hidden, weight, targets, bias=bias, terms=[term], scale=0.7, cap=2.0, chunk_size=chunk_size
    )
    logs, most_likely, _ = expected(11, dtype)
    torch.testing.assert_close(found.log_probabilities, logs)
    assert torch.equal(found.most_likely, most_likely)


def test_of_equal_logits_the_lowest_token_is_the_most_likely() -> None:
    hidden, weight = torch.ones(2, 1), torch.tensor([[-1.0], [3.0], [3.0], [0.0]])
    assert linear_token_scores(hidden, weight, torch.tensor([1, 2]), chunk_size=2).most_likely.tolist() == [1, 1]


def test_no_positions_have_no_scores() -> None:
    found = linear_token_scores(torch.ones(0, 1), torch.ones(3, 1), torch.zeros(0, dtype=torch.int64), chunk_size=2)
    assert [each.shape for each in found] == [(0,), (0,)]


def scores_of_part(topology: Topology, vocabulary: int) -> tuple[Tensor, Tensor, Tensor]:
    parts, index = topology.size(Axis.MODEL), topology.index(Axis.MODEL)
    part = -(-vocabulary // parts)
    mine = slice(index * part, (index + 1) * part)
    hidden, weight, term, bias, targets = case(vocabulary)
    group, term = topology.group(Axis.MODEL), term._replace(weight=term.weight[mine])
    found = linear_token_scores(
        hidden,
        weight[mine],
        targets,
        bias=bias[mine],
        terms=[term],
        scale=0.7,
        cap=2.0,
        group=group,
        offset=min(index * part, vocabulary),
        chunk_size=3,
    )
    logits = linear_logits(hidden, weight[mine], bias[mine], terms=[term], scale=0.7, cap=2.0)
    return *found, all_gather_vocabulary(logits, Place(topology), vocabulary)


def score_in_parts(rank: int, world_size: int) -> None:
    with connected(model=world_size) as topology:
        for vocabulary in (11, 9):  # over four ranks: parts of 3, 3, 3 and 2; of 3, 3, 3 and none
            found_logs, found_most_likely, gathered = scores_of_part(topology, vocabulary)
            logs, most_likely, logits = expected(vocabulary)
            torch.testing.assert_close(found_logs, logs)
            assert torch.equal(found_most_likely, most_likely)
            torch.testing.assert_close(gathered, logits)


def test_a_cut_vocabulary_has_the_same_scores_on_all_ranks() -> None:
    run_distributed(score_in_parts, 4)
