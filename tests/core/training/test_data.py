"""Who reads which samples, in training and in evaluation."""

from __future__ import annotations

from collections import Counter
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from scaling.core.data.blended import BlendedDataset
from scaling.core.data.config import BlendedDatasetConfig
from scaling.core.data.types import BaseDataset
from scaling.core.topology.layout import Axis
from scaling.core.topology.topology import Topology
from scaling.core.training import data as subject
from scaling.core.training.data import TrainingData, short_names
from scaling.core.training.loading import Loading
from tests.core.trainer.regression import Points
from tests.reference.worlds import topology_config, view_of


def data_of(
    topology: Topology,
    *,
    training: BaseDataset[Any] | None = None,
    validation: int | None = 21,
    reads: bool = True,
    micro_batch_size: int = 2,
) -> TrainingData:
    sizes = {axis.value: topology.size(axis) for axis in (Axis.PIPE, Axis.DATA, Axis.MODEL)}
    return TrainingData(
        training or Points(30),
        None if validation is None else Points(validation),
        seed=42,
        batch=topology_config(**sizes, global_batch_size=8, micro_batch_size=micro_batch_size),
        topology=topology,
        reads=reads,
        loading=Loading(),
    )


def rows(tensor: Tensor) -> list[tuple[float, ...]]:
    return [tuple(row.tolist()) for row in tensor]


def read(data: TrainingData, micro_batches: int) -> list[tuple[float, ...]]:
    return [row for _ in range(micro_batches) for row in rows(next(data.training).inputs)]


@pytest.mark.parametrize(("ranks", "micro_batch_size"), [(1, 8), (1, 1), (2, 2), (4, 2)])
def test_a_step_reads_the_same_samples_however_it_is_cut(ranks: int, micro_batch_size: int) -> None:
    expected = data_of(Topology.single(), micro_batch_size=8)
    parts = [data_of(view_of(rank, data=ranks), micro_batch_size=micro_batch_size) for rank in range(ranks)]
    for _ in range(5):
        found = [row for part in parts for row in read(part, 8 // ranks // micro_batch_size)]
        assert Counter(found) == Counter(read(expected, 1))


def test_ranks_of_the_model_axis_and_of_both_ends_of_the_pipe_read_the_same() -> None:
    views = [view_of(rank, pipe=2, model=2) for rank in range(4)]
    found = [read(data_of(view), 8) for view in views]
    assert all(rows == found[0] for rows in found)


@pytest.mark.parametrize(
    ("device", "wanted", "pinned"), [("cpu", True, False), ("cuda", True, True), ("cuda", False, False)]
)
def test_memory_is_pinned_for_a_gpu_alone(device: str, wanted: bool, pinned: bool) -> None:
    topology = mock.Mock(device=torch.device(device), index=lambda axis: 0)
    batch = topology_config(global_batch_size=8, micro_batch_size=2)
    with mock.patch.object(subject, "DataLoader") as made:
        loading = Loading(pin_memory=wanted)
        TrainingData(Points(9), None, seed=1, batch=batch, topology=topology, reads=True, loading=loading)
    assert made.call_args.kwargs["pin_memory"] == pinned


def test_ranks_in_the_middle_of_the_pipe_read_nothing() -> None:
    data = data_of(view_of(1, pipe=3), reads=False)
    assert list(data.training) == list(data.evaluation()) == []
    assert data.evaluation_steps() == 3  # and yet know how often the others read
    data.seek(16)
    data.close()


def test_seeking_goes_on_with_the_step_behind_the_samples() -> None:
    whole, sought = data_of(Topology.single()), data_of(Topology.single())
    expected = read(whole, 12)
    sought.seek(16)
    assert read(sought, 4) == expected[16:]


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("validation", [1, 8, 21])
def test_an_evaluation_counts_every_sample_once(ranks: int, validation: int) -> None:
    counted: Counter[tuple[float, ...]] = Counter()
    for rank in range(ranks):
        data = data_of(view_of(rank, data=ranks), validation=validation, micro_batch_size=1)
        batches = list(data.evaluation())
        assert len(batches) == data.evaluation_steps() * 8 // ranks
        for batch in batches:
            _, valid = batch.targets
            counted.update(row for row, counts in zip(rows(batch.inputs), valid.tolist(), strict=True) if counts)
    points = Points(validation)
    assert counted == Counter(tuple(points[index][0].tolist()) for index in range(validation))


def test_evaluation_can_be_cut_short_or_left_out() -> None:
    data = data_of(Topology.single())
    assert data.evaluation_steps(2) == 2
    assert len(list(data.evaluation(2))) == 8
    none = data_of(Topology.single(), validation=None)
    assert none.evaluation_steps() == 0
    assert list(none.evaluation()) == []


def test_epochs_are_counted_for_each_source_of_a_mixture() -> None:
    sources = [Points(10), Points(30)]
    equal = BlendedDatasetConfig(weighted_sampler_alpha=0)
    mixture = BlendedDataset(sources, equal, names=["/data/en/text", "/data/de/text"])
    counted = data_of(Topology.single(), training=mixture).epochs(40)
    assert counted == {"training/epochs_en/text": 2.0, "training/epochs_de/text": pytest.approx(20 / 30)}


@pytest.mark.parametrize(
    "training",
    [
        Points(30),
        BlendedDataset([Points(30)], BlendedDatasetConfig()),
        BlendedDataset([Points(30)], BlendedDatasetConfig(minimum_dataset_size=1000)),
    ],
    ids=["plain", "blended", "repeated"],
)
def test_epochs_of_a_single_data_set_have_no_name(training: BaseDataset[Any]) -> None:
    assert data_of(Topology.single(), training=training).epochs(45) == {"training/epochs": 1.5}


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["/data/web", "/data/books"], ["web", "books"]),
        (["a/text", "b/text", "c"], ["a/text", "b/text", "c"]),
        (["x/a/t", "y/a/t"], ["x/a/t", "y/a/t"]),
        (["/t", "t"], ["/t", "t"]),
        (["0"], ["0"]),
        ([], []),
    ],
)
def test_names_are_shortened_as_long_as_they_differ(names: list[str], short: list[str]) -> None:
    assert short_names(names) == short


def test_a_rank_that_reads_nothing_never_waits_for_data() -> None:
    reading, idle = data_of(Topology.single()), data_of(Topology.single(), reads=False)
    reading.wait()
    idle.wait()
    assert reading.take_waited() > 0
    assert idle.take_waited() == 0.0
