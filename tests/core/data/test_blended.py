"""A mixture of data sets: shares, epochs of each source, fingerprint, and resuming at any position."""

from __future__ import annotations

import resource
import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.core.data.blended import BlendedDataset
from scaling.core.data.config import BlendedDatasetConfig
from scaling.core.data.loader import DataLoader
from scaling.core.data.mixture import SCATTER_WINDOW
from scaling.core.data.sampler import EpochOrder, items_of, order_of
from scaling.core.data.types import BaseDataset
from scaling.core.errors import DataError
from tests.core.data.datasets import Labels


def explicit(*weights: float, **options: object) -> BlendedDatasetConfig:
    return BlendedDatasetConfig(weight_by_num_documents=False, weights=list(weights), **options)


def samples(dataset: BaseDataset[str], positions: range, *, seed: int = 1, shuffle: bool = True) -> list[str]:
    order = order_of(dataset, key=(seed,), shuffle=shuffle)
    return [dataset[item] for item in items_of(order, positions)]


def test_by_default_every_sample_is_seen_once_before_any_is_repeated() -> None:
    blend = BlendedDataset([Labels("a", 30), Labels("b", 12)], BlendedDatasetConfig())
    for epoch in range(3):
        seen = samples(blend, range(42 * epoch, 42 * (epoch + 1)))
        assert sorted(seen) == sorted([f"a{i}" for i in range(30)] + [f"b{i}" for i in range(12)])


def test_a_heavy_source_is_repeated_while_a_light_one_is_on_its_first_epoch() -> None:
    blend = BlendedDataset([Labels("a", 100), Labels("b", 10)], explicit(1, 30), names=["web", "books"])
    seen = Counter(samples(blend, range(400)))  # shares 1 * 100 and 30 * 10: one to three
    assert sum(count for sample, count in seen.items() if sample[0] == "a") == 100
    assert {seen[f"a{i}"] for i in range(100)} == {1}
    assert {seen[f"b{i}"] for i in range(10)} == {30}
    assert blend.epochs(400) == {"web": 1.0, "books": 30.0}
    assert blend.epochs(100) == {"web": 0.25, "books": 7.5}


def test_each_epoch_of_a_source_has_an_order_of_its_own_and_unshuffled_ones_do_not() -> None:
    blend = BlendedDataset([Labels("a", 20), Labels("b", 20)], BlendedDatasetConfig())
    epochs = [[sample for sample in samples(blend, range(40 * e, 40 * e + 40)) if sample[0] == "a"] for e in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1])
    assert epochs[0] != epochs[1]
    plain = samples(blend, range(40), shuffle=False)
    assert [sample for sample in plain if sample[0] == "b"] == [f"b{i}" for i in range(20)]


def test_shuffling_across_sources_keeps_the_samples_of_a_window() -> None:
    sources = [Labels("a", SCATTER_WINDOW), Labels("b", 3 * SCATTER_WINDOW)]
    regular, scattered = (
        BlendedDataset(sources, BlendedDatasetConfig(shuffle_dataset_indices=scatter)) for scatter in (False, True)
    )
    order = order_of(scattered, key=(1,), shuffle=True)
    window = np.arange(SCATTER_WINDOW, 2 * SCATTER_WINDOW)
    items = order.items(window)
    assert sorted(items.tolist()) == sorted(order_of(regular, key=(1,), shuffle=True).items(window).tolist())
    assert len({tuple(part) for part in (items < len(sources[0])).reshape(-1, 4).tolist()}) > 4  # no longer regular
    assert order.items(window[77:99]).tolist() == items[77:99].tolist()
    again = order.items(window + 4 * SCATTER_WINDOW)
    assert ((items < len(sources[0])) != (again < len(sources[0]))).any()  # each window in an order of its own
    assert regular.fingerprint() != scattered.fingerprint()


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    sizes=st.lists(st.integers(1, 60), min_size=2, max_size=5),
    weights=st.none() | st.lists(st.integers(1, 20), min_size=5, max_size=5),
    seed=st.integers(0, 100),
)
def test_shuffled_across_sources_each_source_is_still_gone_through_in_epochs(
    sizes: list[int], weights: list[int] | None, seed: int
) -> None:
    """A small source with a large weight too, whose epochs begin and end many times within a window."""
    options = {"shuffle_dataset_indices": True}
    sources = [Labels(label, size) for label, size in zip("abcde", sizes, strict=False)]
    config = BlendedDatasetConfig(**options) if weights is None else explicit(*weights[: len(sizes)], **options)
    seen = samples(BlendedDataset(sources, config), range(3 * sum(sizes)), seed=seed)
    for source in sources:
        drawn = [sample for sample in seen if sample[0] == source.label]
        for epoch in range(0, len(drawn), source.length):
            part = drawn[epoch : epoch + source.length]
            assert len(set(part)) == len(part)


@pytest.mark.parametrize("sizes", [(1136, 401), (3000, 6000), (5000, 5001, 3)], ids=str)
def test_shuffled_across_sources_every_sample_is_still_seen_once_before_any_is_repeated(sizes: tuple[int, ...]) -> None:
    """In data smaller than a window, and in data that no number of windows fits."""
    sources = [Labels(label, size) for label, size in zip("abc", sizes, strict=False)]
    blend = BlendedDataset(sources, BlendedDatasetConfig(shuffle_dataset_indices=True))
    order, total = order_of(blend, key=(1,), shuffle=True), sum(sizes)
    for epoch in range(2):
        assert sorted(order.items(np.arange(total * epoch, total * (epoch + 1))).tolist()) == list(range(total))


def test_a_single_data_set_passes_through() -> None:
    blend = BlendedDataset([Labels("a", 9)], explicit(1, 2, 3))
    assert order_of(blend, key=(5,), shuffle=True) == EpochOrder(9, key=(5,))
    assert blend.epochs(18) == {"0": 2.0}


def test_as_a_data_set_a_blend_is_its_sources_one_after_the_other() -> None:
    blend = BlendedDataset([Labels("a", 2), Labels("b", 3)], explicit(1, 100))
    assert [blend[index] for index in range(len(blend))] == ["a0", "a1", "b0", "b1", "b2"]
    assert blend.locate(4) == (1, 2)
    with pytest.raises(IndexError):
        blend[5]


def test_a_minimum_size_repeats_the_samples() -> None:
    blend = BlendedDataset([Labels("a", 2), Labels("b", 1)], BlendedDatasetConfig(minimum_dataset_size=7))
    assert [blend[index] for index in range(len(blend))] == ["a0", "a1", "b0", "a0", "a1", "b0", "a0"]


def test_blends_can_be_blended() -> None:
    inner = BlendedDataset([Labels("a", 4), Labels("b", 4)], explicit(3, 1))
    outer = BlendedDataset([inner, Labels("c", 8)], BlendedDatasetConfig())
    seen = Counter(sample[0] for sample in samples(outer, range(64)))
    assert seen == {"a": 24, "b": 8, "c": 32}


def test_the_fingerprint_covers_sources_and_shares() -> None:
    blends = [
        BlendedDataset([Labels("a", 2), Labels("b", 3)], explicit(1, 1)),
        BlendedDataset([Labels("a", 2), Labels("b", 3)], explicit(1, 2)),
        BlendedDataset([Labels("a", 2), Labels("c", 3)], explicit(1, 1)),
    ]
    assert len({blend.fingerprint() for blend in blends}) == 3
    again = BlendedDataset([Labels("a", 2), Labels("b", 3)], explicit(2, 2))
    assert again.fingerprint() == blends[0].fingerprint()


def test_unusable_sources_are_refused_by_name() -> None:
    with pytest.raises(DataError, match="at least one"):
        BlendedDataset([], BlendedDatasetConfig())
    with pytest.raises(DataError, match="data set code has no samples"):
        BlendedDataset([Labels("a", 1), Labels("b", 0)], BlendedDatasetConfig(), names=["web", "code"])
    with pytest.raises(DataError, match="different names"):
        BlendedDataset([Labels("a", 1), Labels("b", 1)], BlendedDatasetConfig(), names=["x", "x"])


def test_a_mixture_of_a_billion_samples_resumes_at_once_and_in_little_memory() -> None:
    peak_before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.process_time()  # not of the clock, which runs on while this process has no core
    sources = [
        Labels(label, size) for label, size in zip("abcde", (6 * 10**8, 3 * 10**8, 10**8 - 7, 5, 2), strict=True)
    ]
    config = BlendedDatasetConfig(weighted_sampler_alpha=0.7, shuffle_dataset_indices=True)
    loader = DataLoader(
        BlendedDataset(sources, config),
        seed=3,
        data_parallel_size=8,
        data_parallel_rank=5,
        micro_batch_size=16,
        gradient_accumulation_steps=8,
        consumed_samples=10**6 * 1024,
    )
    batch = next(loader)
    assert time.process_time() - begin < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak_before < 200 * 1024  # KiB
    assert batch.targets[0] == 10**6 * 1024 + 5 * 16
    assert len(batch.inputs) == 16
