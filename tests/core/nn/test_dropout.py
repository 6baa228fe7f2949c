"""Dropout masks: good coin flips, and the same ones however the tensor is cut."""

from __future__ import annotations

import hashlib
import math
from itertools import pairwise

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from scaling.core import LayoutError
from scaling.core.nn.dropout import Dropout, keep_mask, row_keys
from scaling.core.nn.place import Place
from scaling.core.topology.topology import Topology
from tests.reference.worlds import view_of

PROBABILITIES = (0.01, 0.1, 0.5, 0.9)


def dropped(dropout: Dropout, samples: Tensor, *, length: int = 16, features: int = 32) -> Tensor:
    return dropout(torch.ones(len(samples), length, features, dtype=torch.float64), samples)  # type: ignore[no-any-return]


def site(name: str = "block", *, probability: float = 0.3, seed: int = 1, topology: Topology | None = None) -> Dropout:
    place = None if topology is None else Place(topology, sequence_parallel=topology.sequence_parallel)
    return Dropout(probability, seed=seed, site=name, place=place)


@pytest.mark.parametrize("probability", PROBABILITIES)
def test_elements_are_dropped_as_often_as_asked_and_the_rest_scaled(probability: float) -> None:
    out = dropped(site(probability=probability), torch.arange(64), length=64, features=256)
    kept = out != 0
    sigma = math.sqrt(probability * (1 - probability) / out.numel())
    assert abs(float(kept.double().mean()) - (1 - probability)) < 4 * sigma
    assert torch.allclose(out[kept], torch.tensor(1 / (1 - probability), dtype=torch.float64))
    for dim in range(3):  # every sample, every position, every feature
        others = [d for d in range(3) if d != dim]
        rates = kept.double().mean(others)
        deviation = math.sqrt(probability * (1 - probability) / (out.numel() / out.shape[dim]))
        assert float((rates - (1 - probability)).abs().max()) < 5 * deviation


@pytest.mark.parametrize(("shape", "hint"), [((64, 32), "; give it x[:, None]"), ((2, 3, 4, 5), ""), ((8,), "")])
def test_other_dimensions_are_refused_with_the_shape(shape: tuple[int, ...], hint: str) -> None:
    for drop in (site(), site().within):
        with pytest.raises(LayoutError) as raised:
            drop(torch.ones(shape), torch.arange(shape[0]))
        assert str(raised.value) == f"Dropout takes [b, s, h], not {list(shape)}{hint}"
    assert site()(torch.ones(64, 32)[:, None], torch.arange(64)).shape == (64, 1, 32)


def correlation(a: Tensor, b: Tensor) -> float:
    """Return how many standard deviations the correlation of two masks of independent coins is from zero."""
    a, b = a.double() - a.double().mean(), b.double() - b.double().mean()
    return float((a * b).mean() / (a.square().mean() * b.square().mean()).sqrt()) * math.sqrt(a.numel())


@pytest.mark.parametrize("probability", PROBABILITIES)
def test_neighbours_and_powers_of_two_are_not_correlated(probability: float) -> None:
    kept = dropped(site(probability=probability), torch.arange(32), length=64, features=128) != 0
    for dim in range(3):
        for distance in (1, 2, 3, 4, 8, 16, 31):
            ahead = kept.narrow(dim, distance, kept.shape[dim] - distance)
            behind = kept.narrow(dim, 0, kept.shape[dim] - distance)
            assert abs(correlation(ahead, behind)) < 5, (dim, distance)


def test_the_mask_is_the_same_on_every_machine_for_ever() -> None:
    # A change of these bits changes every run that goes on from a checkpoint with dropout.
    kept = dropped(site(), torch.arange(64) * 2**35, length=64, features=256) != 0  # enough to show each bit's part
    assert hashlib.sha256(kept.numpy().tobytes()).hexdigest() == (
        "bd51762551f2b8d7dbab6bae3e81dad1d6ab367e18f91f3f1691d2ce7ffd6192"
    )
    scores = site().scores_mask(torch.tensor([7]), heads=range(5, 7), queries=1, keys=32).long() @ 2 ** torch.arange(32)
    assert [f"{word:08x}" for word in scores.flatten().tolist()] == ["bfd57b75", "f84ff21d"]


def test_pairs_of_features_agree_no_more_often_in_one_sample_than_chance_says() -> None:
    # The mask of a row must not be a shifted or inverted copy of another row's.
    kept = (dropped(site(probability=0.5), torch.arange(32), length=64, features=512) != 0).flatten(0, 1).double()
    agreement = (kept - 0.5) @ (kept - 0.5).t() * 4 / math.sqrt(512)
    assert float(agreement.fill_diagonal_(0).abs().max()) < 6.5  # of 2 million pairs
    by_feature = (kept - 0.5).t() @ (kept - 0.5) * 4 / math.sqrt(kept.shape[0])
    assert float(by_feature.fill_diagonal_(0).abs().max()) < 6.5


def test_three_elements_are_not_bound_to_one_another() -> None:
    kept = (dropped(site(probability=0.5), torch.arange(64), length=64, features=256) != 0).double() - 0.5
    for a, b in ((1, 2), (1, 3), (2, 5), (4, 8), (16, 32)):
        triples = kept[..., :-b] * kept[..., a : kept.shape[-1] - b + a] * kept[..., b:] * 8
        assert abs(float(triples.mean())) * math.sqrt(triples.numel()) < 5
    square = kept[:, :-1, :-1] * kept[:, 1:, :-1] * kept[:, :-1, 1:] * kept[:, 1:, 1:] * 16
    assert abs(float(square.mean())) * math.sqrt(square.numel()) < 5


@pytest.mark.parametrize("other", [{"name": "block2"}, {"seed": 2}])
def test_another_site_or_seed_draws_other_coins(other: dict[str, object]) -> None:
    samples = torch.arange(64)
    kept = [dropped(layer, samples, features=128) != 0 for layer in (site(), site(**other))]  # type: ignore[arg-type]
    assert abs(correlation(*kept)) < 5


@given(order=st.permutations(range(8)), cut=st.integers(0, 8))
def test_a_sample_has_its_mask_in_whatever_micro_batch_it_comes(order: list[int], cut: int) -> None:
    layer, samples = site(), torch.tensor(order) * 1000 + 3
    whole = dropped(layer, samples)
    parts = [dropped(layer, part) for part in (samples[:cut], samples[cut:])]
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(whole[torch.tensor(order).argsort()], dropped(layer, torch.arange(8) * 1000 + 3))


@pytest.mark.parametrize("ranks", [2, 4])
def test_slices_of_the_sequence_have_the_masks_of_the_whole(ranks: int) -> None:
    samples = torch.tensor([5, 9])
    parts = [
        dropped(site(topology=view_of(rank, model=ranks, sequence_parallel=True)), samples, length=16 // ranks)
        for rank in range(ranks)
    ]
    assert torch.equal(torch.cat(parts, dim=1), dropped(site(), samples))


@given(cuts=st.lists(st.integers(0, 32), max_size=4), sequence_parallel=st.booleans())
def test_slices_of_the_features_have_the_masks_of_the_whole(cuts: list[int], sequence_parallel: bool) -> None:
    """Within sharded computation, where the sequence is whole on every rank."""
    layer = site(topology=view_of(1, model=2, sequence_parallel=sequence_parallel))
    x, samples, borders = torch.ones(2, 16, 32, dtype=torch.float64), torch.tensor([5, 9]), sorted([0, *cuts, 32])
    whole = dropped(site(), samples)
    assert torch.equal(layer.within(x, samples), whole)
    slices = [range(*ends) for ends in pairwise(borders)]
    parts = [layer.within(x[..., part.start : part.stop], samples, features=part) for part in slices]
    assert torch.equal(torch.cat(parts, dim=2), whole)
    assert layer.eval().within(x, samples, features=range(32)) is x


@pytest.mark.parametrize("rank", range(8))
def test_the_mask_of_a_whole_sequence_is_the_same_on_every_rank(rank: int) -> None:
    samples = torch.tensor([5, 9])
    view = view_of(rank, pipe=2, data=2, model=2)
    assert torch.equal(dropped(site(topology=view), samples), dropped(site(), samples))


@given(parts=st.sampled_from([1, 2, 4, 8]), queries=st.integers(1, 12))
def test_heads_of_a_rank_have_the_masks_they_have_in_the_whole_layer(parts: int, queries: int) -> None:
    layer, samples = site(), torch.tensor([3, 11])
    whole = layer.scores_mask(samples, heads=range(8), queries=12, keys=12)
    step = 8 // parts
    by_rank = [
        layer.scores_mask(samples, heads=range(first, first + step), queries=queries, keys=12)
        for first in range(0, 8, step)
    ]
    # The last queries of a sequence: generation goes on where the prompt ended.
    assert torch.equal(torch.cat(by_rank, dim=1), whole[:, :, 12 - queries :])


def test_masks_of_attention_are_fair_coins_of_their_own() -> None:
    layer = site(probability=0.5)
    mask = layer.scores_mask(torch.arange(16), heads=range(8), queries=64, keys=64)
    assert mask.shape == (16, 8, 64, 64)
    assert abs(float(mask.double().mean()) - 0.5) < 5 * 0.5 / math.sqrt(mask.numel())
    for dim in range(4):
        size = mask.shape[dim] - 1
        assert abs(correlation(mask.narrow(dim, 0, size), mask.narrow(dim, 1, size))) < 5
    below = torch.ones(64, 64, dtype=torch.bool).tril(-1)
    assert abs(correlation(mask[..., below], mask.transpose(2, 3)[..., below])) < 5


@example(probability=1.0, samples=[0])
@example(probability=1 - 2**-40, samples=[0])
@given(probability=st.floats(0, 1), samples=st.lists(st.integers(0, 2**62), min_size=1, max_size=3))
def test_every_probability_and_sample_number_works(probability: float, samples: list[int]) -> None:
    out = dropped(site(probability=probability), torch.tensor(samples))
    assert out.isfinite().all()
    if probability == 0.0:
        assert out.eq(1).all()
    if probability == 1.0:
        assert not out.any()


def test_nothing_is_dropped_in_evaluation() -> None:
    layer, x = site().eval(), torch.ones(1, 2, 3)
    assert layer(x, torch.tensor([0])) is x
    assert not layer.active
    assert not site(probability=0.0).active


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_mask_does_not_depend_on_the_type(dtype: torch.dtype) -> None:
    out = site()(torch.ones(2, 8, 64, dtype=dtype), torch.tensor([1, 2]))
    assert out.dtype == dtype
    assert torch.equal(out != 0, dropped(site(), torch.tensor([1, 2]), length=8, features=64) != 0)


def test_gradients_flow_where_elements_stay() -> None:
    x = torch.ones(2, 8, 64, dtype=torch.float64, requires_grad=True)
    out = site()(x, torch.tensor([1, 2]))
    torch.autograd.backward(out.sum())
    assert x.grad is not None
    assert torch.equal(x.grad, out.detach())


@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_the_stream_of_a_rank_drops_alike_what_model_ranks_hold_alike(sequence_parallel: bool) -> None:
    def draw(rank: int) -> Tensor:
        view = view_of(rank, data=2, model=2, sequence_parallel=sequence_parallel)
        place = Place(view, sequence_parallel=sequence_parallel)
        layer = Dropout(0.5, seed=1, site="s", place=place, stream="per_rank")
        view.rng.seed(7)
        return torch.cat([layer(torch.ones(4, 8, 64), torch.arange(4)) for _ in range(2)])

    draws = [draw(rank) for rank in range(4)]
    assert torch.equal(draws[0], draws[1]) == (not sequence_parallel)
    assert not torch.equal(draws[0], draws[2])  # another data rank has other samples
    assert torch.equal(draws[0], draw(0))
    assert not torch.equal(draws[0][:4], draws[0][4:])
    assert float((draws[0] != 0).double().mean()) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("features", [None, range(0, 8)])
def test_the_stream_of_a_rank_is_its_own_where_features_are_cut(features: range | None) -> None:
    """Within sharded computation; also on the rank that has the first of them."""

    def draw(rank: int) -> Tensor:
        view = view_of(rank, model=2, sequence_parallel=True)
        view.rng.seed(7)
        layer = Dropout(0.5, seed=1, site="s", place=Place(view, sequence_parallel=True), stream="per_rank")
        return layer.within(torch.ones(4, 8, 8), torch.arange(4), features=features)

    assert torch.equal(draw(0), draw(1)) == (features is None)
    assert torch.equal(draw(0), draw(0))


def test_keys_of_rows_depend_on_every_coordinate_and_their_order() -> None:
    one, two = torch.tensor([1]), torch.tensor([2])
    keys = {int(row_keys(5, *coordinates)) for coordinates in ((one, two), (two, one), (one,), (two,), (one, one))}
    assert len(keys) == 5
    many = row_keys(5, torch.arange(1000).unsqueeze(1), torch.arange(1000))
    assert many.unique().numel() == 10**6
    assert keep_mask(many[:2, :3], torch.arange(7), 0.5).shape == (2, 3, 7)
