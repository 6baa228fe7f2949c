"""Texts of many lengths have the probabilities that each has alone, on every rank of every layout."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from scaling.core import ConfigError, DataRefusedError, ParallelModule, Topology, TopologyConfig
from scaling.transformer.inference import scoring as source
from scaling.transformer.inference.scoring import Likelihood, Packed, Scoring, plan_packs
from scaling.transformer.model import layer_specs
from tests.distributed import run_distributed
from tests.reference.worlds import connected, topology_config, view_of
from tests.transformer.finetuned import VOCABULARY, section

PROMPT = {"softprompt_config": {"name": "prompt", "n_tokens": 3}}
WINDOWS = {"local_attention_window_size": 4, "num_local_attention_heads": 2}
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "tied": {"weight_tying": True, "norm_type": "rms"},
    "windows": WINDOWS,
    "learned": {"absolute_positions": 32, "relative_position_embedding_type": "none"},
    "prompt": PROMPT,
}
LENGTHS = ((1, 1), (3, 5), (9, 2), (3, 5), (4, 0), (12, 4), (1, 7), (0, 0))
"""Tokens of contexts and continuations."""


def built(topology: Topology, config: TopologyConfig, **changes: Any) -> Scoring:
    """Return a model in float64 whose weights have values by their names."""
    architecture = section(precision="float64", **changes)
    module = ParallelModule(layer_specs(architecture, topology, seed=0), topology, config, seed=0)
    with torch.no_grad():
        for tensor in module.global_tensors():
            generator = torch.Generator().manual_seed(sum(map(ord, tensor.key)))
            whole = 0.5 * torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            for box, view in tensor.parts:
                around = 1.0 if tensor.key.endswith("norm.weight") else 0.0
                view.copy_(around + whole[tuple(slice(a, b) for a, b in zip(box.offset, box.stop, strict=True))])
    return Scoring(module, architecture, topology)


def alone(**changes: Any) -> Scoring:
    return built(Topology.single(), TopologyConfig(), **changes)


def texts(lengths: Sequence[tuple[int, int]] = LENGTHS) -> tuple[list[list[int]], list[list[int]]]:
    generator = torch.Generator().manual_seed(5)
    drawn = [torch.randint(0, VOCABULARY, (a + b,), generator=generator).tolist() for a, b in lengths]
    return [row[:a] for row, (a, _) in zip(drawn, lengths, strict=True)], [
        row[a:] for row, (a, _) in zip(drawn, lengths, strict=True)
    ]


def one_by_one(
    scoring: Scoring, contexts: list[list[int]], new: list[list[int]], placeholders: int
) -> list[Likelihood]:
    """Score each text by all of its logits."""
    found = []
    for context, continuation in zip(contexts, new, strict=True):
        if not continuation:
            found.append(Likelihood(torch.zeros(0, dtype=torch.float64), is_greedy=True, total=0.0))
            continue
        logits = scoring.logits(torch.tensor([context + continuation]), placeholders=placeholders)[0]
        rows = logits[len(context) - 1 : -1]
        targets = torch.tensor(continuation)
        logs = rows.log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1)
        found.append(Likelihood(logs, is_greedy=torch.equal(rows.argmax(-1), targets), total=float(logs.sum())))
    return found


def require_equal(found: Sequence[Likelihood], expected: Sequence[Likelihood]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.log_probabilities, other.log_probabilities, rtol=0, atol=1e-10)
        assert one.is_greedy == other.is_greedy
        assert one.total == pytest.approx(other.total, abs=1e-9)


def score_together(rank: int, world_size: int, name: str = "prompt") -> None:
    scoring, placeholders = alone(**CASES[name]), 3 if name == "prompt" else 0
    contexts, continuations = texts()
    # What the model itself goes on with: greedy, until the last token of one of them.
    for last in (0, 1):
        row = contexts[1][:]
        for _ in range(3):
            row.append(int(scoring.logits(torch.tensor([row]), placeholders=placeholders)[0, -1].argmax()))
        contexts.append(contexts[1])
        continuations.append([*row[3:-1], (row[-1] + last) % VOCABULARY])
    expected = one_by_one(scoring, contexts, continuations, placeholders)
    assert [each.is_greedy for each in expected[-2:]] == [True, False]
    for pack in (1, 16, 1000):
        found = scoring.log_likelihoods(contexts, continuations, placeholders=placeholders, pack=pack)
        require_equal(found, expected)


@pytest.mark.parametrize("name", CASES)
def test_texts_together_have_the_probabilities_of_each_alone(name: str) -> None:
    score_together(0, 1, name)


def test_a_soft_prompt_acts_on_every_text() -> None:
    scoring, plain = alone(**PROMPT), alone()
    contexts, continuations = texts(LENGTHS[:4])
    with_prompt = scoring.log_likelihoods(contexts, continuations, placeholders=3)
    for one, other in zip(with_prompt, plain.log_likelihoods(contexts, continuations), strict=True):
        assert abs(one.total - other.total) > 1e-3


def test_texts_that_differ_in_their_last_token_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    scoring, packed = alone(), Scoring.packed
    ran: list[list[Sequence[int]]] = []

    def watched(self: Scoring, rows: Sequence[Sequence[int]], *, placeholders: int = 0) -> Packed:
        ran.append(list(rows))
        return packed(self, rows, placeholders=placeholders)

    monkeypatch.setattr(Scoring, "packed", watched)
    contexts, continuations = [[3, 1]] * 3, [[4, 1], [4, 5], [4, 1]]
    found = scoring.log_likelihoods(contexts, continuations)
    assert ran == [[(3, 1, 4)]]
    monkeypatch.undo()
    require_equal(found, one_by_one(scoring, contexts, continuations, 0))


@given(st.lists(st.integers(1, 20), max_size=30), st.integers(1, 40))
def test_packs_have_every_row_once_and_no_more_tokens_than_allowed(lengths: list[int], limit: int) -> None:
    packs = plan_packs(lengths, limit)
    assert sorted(row for pack in packs for row in pack) == list(range(len(lengths)))
    sums = [sum(lengths[row] for row in pack) for pack in packs]
    assert all(total <= limit or len(pack) == 1 for total, pack in zip(sums, packs, strict=True))
    for (total, _), (_, after) in pairwise(zip(sums, packs, strict=True)):
        assert total + lengths[after[0]] > limit


def test_wrong_requests_are_refused() -> None:
    scoring = alone(absolute_positions=6, sequence_length=6, relative_position_embedding_type="none")
    with pytest.raises(ConfigError, match=r"row 1 has an empty context.*beginning-of-text token"):
        scoring.log_likelihoods([[1], []], [[2], [3]])
    with pytest.raises(ConfigError, match=f"row 0 has token {VOCABULARY}, outside the vocabulary of {VOCABULARY}"):
        scoring.log_likelihoods([[1]], [[VOCABULARY]])
    with pytest.raises(ConfigError, match="1 contexts and 2 continuations"):
        scoring.log_likelihoods([[1]], [[2], [3]])
    with pytest.raises(ConfigError, match="the text has 7 tokens, but the model knows 6 positions"):
        scoring.log_likelihoods([[1]], [[2] * 7])
    with pytest.raises(ConfigError, match=r"layer 4 has no hidden states; choose from 0 .* to 3"):
        scoring.hidden_states(torch.tensor([[1]]), [0, 4])
    with pytest.raises(ConfigError, match="sequence_parallel to false"):
        built(view_of(0, model=2, sequence_parallel=True), topology_config(model=2))
    assert scoring.log_likelihoods([], []) == []


def test_probabilities_that_are_no_numbers_are_refused() -> None:
    scoring = alone()
    with torch.no_grad():
        next(scoring._module.parameters())[3] = torch.nan
    (fine,) = scoring.log_likelihoods([[1, 2]], [[4]])
    assert fine.total < 0
    with pytest.raises(DataRefusedError, match="row 1 probabilities that are no numbers"):
        scoring.log_likelihoods([[1, 2], [1, 3]], [[4], [4]])


def test_logits_of_long_texts_never_exist_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "_LOGITS", 8 * VOCABULARY)
    scoring, seen = alone(), []
    linear = torch.nn.functional.linear

    def watched(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        turned = x.shape[0] == VOCABULARY  # of few positions: the vocabulary's rows, times these
        seen.append(weight.shape[0] if turned else x.shape[:-1].numel() if weight.shape[0] == VOCABULARY else 0)
        return linear(x, weight, bias)

    monkeypatch.setattr(torch.nn.functional, "linear", watched)
    scoring.log_likelihoods([[1] * 5], [[2] * 25])
    assert max(seen) == 8
    assert sum(seen) == 25  # and those of the context are not made


def test_hidden_states_are_what_the_layers_pass_on() -> None:
    scoring = alone(**PROMPT)
    rows = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
    found = scoring.hidden_states(rows, [3, 0, 1], placeholders=3)
    assert sorted(found) == [0, 1, 3]
    assert all(states.shape == (2, 4, 16) for states in found.values())
    output = scoring.output(rows, placeholders=3)
    assert output is not None
    assert torch.equal(found[3], output.hidden)
    (_, embedding), *_ = scoring._module.layers()
    assert torch.equal(found[0], embedding.embedding(rows))  # type: ignore[operator]
    assert not any(layer._forward_hooks for _, layer in scoring._module.layers())


def everything(scoring: Scoring, placeholders: int) -> list[Any]:
    rows = torch.tensor([[1, 2, 3, 4, 5], [5, 6, 7, 8, 28]])
    return [
        scoring.log_likelihoods(*texts(), placeholders=placeholders, pack=24),
        scoring.logits(rows, placeholders=placeholders),
        scoring.log_likelihood(rows, placeholders=placeholders),
        scoring.hidden_states(rows, [0, 1, 2, 3], placeholders=placeholders),
    ]


def score_on_rank(rank: int, world_size: int, pipe: int, model: int) -> list[list[Any]]:
    config = topology_config(pipe=pipe, model=model)
    with connected(pipe=pipe, model=model) as topology:
        return [
            everything(built(topology, config, **changes), 3 if changes is PROMPT else 0)
            for changes in (WINDOWS, PROMPT)
        ]


@pytest.mark.parametrize(("pipe", "model"), [(1, 2), (2, 1), (2, 2)])
def test_all_ranks_of_all_layouts_find_the_same(pipe: int, model: int) -> None:
    expected = [everything(alone(**changes), 3 if changes is PROMPT else 0) for changes in (WINDOWS, PROMPT)]
    for found in run_distributed(score_on_rank, pipe * model, pipe, model):
        for (scores, *tensors), (expected_scores, *expected_tensors) in zip(found, expected, strict=True):
            require_equal(scores, expected_scores)
            torch.testing.assert_close(tensors, expected_tensors, rtol=0, atol=1e-10)
