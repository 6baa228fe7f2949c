"""Every rank gets the samples at its positions: across epochs, resumes, workers that die, and evaluations."""

from __future__ import annotations

import itertools
import logging
import multiprocessing
import os
import signal
from collections.abc import Callable, Generator, Iterator
from itertools import islice
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from scaling.core import faults
from scaling.core.data import loader as module
from scaling.core.data.blended import BlendedDataset
from scaling.core.data.config import BlendedDatasetConfig
from scaling.core.data.loader import DataLoader, evaluation_batches
from scaling.core.data.sampler import BatchGeometry, EpochOrder, evaluation_steps, items_of
from scaling.core.data.types import MicroBatch
from scaling.core.errors import DataError, DataRefusedError, ScalingError, StorageError
from tests.core.data.datasets import Broken, Deadly, Labels, Numbers, Unsendable
from tests.processes import wait_until

SEED = 11


def loader(
    dataset: Any = None, geometry: tuple[int, int, int] = (2, 3, 2), *, rank: int = 0, **options: Any
) -> DataLoader:
    data_parallel_size, micro_batch_size, gradient_accumulation_steps = geometry
    return DataLoader(
        dataset or Numbers(50),
        seed=SEED,
        data_parallel_size=data_parallel_size,
        data_parallel_rank=rank,
        micro_batch_size=micro_batch_size,
        gradient_accumulation_steps=gradient_accumulation_steps,
        **options,
    )


def evaluation(
    dataset: Any, geometry: tuple[int, int, int], *, rank: int = 0, **options: Any
) -> Generator[MicroBatch, None, None]:
    data_parallel_size, micro_batch_size, gradient_accumulation_steps = geometry
    return evaluation_batches(
        dataset,
        data_parallel_size=data_parallel_size,
        data_parallel_rank=rank,
        micro_batch_size=micro_batch_size,
        gradient_accumulation_steps=gradient_accumulation_steps,
        **options,
    )


def reading_processes() -> list[BaseProcess]:
    """Return this process's children, but for the pool of test workers."""
    return [process for process in multiprocessing.active_children() if not process.name.startswith("worker-")]


def assert_stopped() -> None:
    """All workers end. PyTorch waits some seconds for each of them, and then kills it without waiting."""
    wait_until(lambda: reading_processes() == [], "a data worker goes on")


@pytest.fixture
def worker_loader() -> Iterator[Callable[..., DataLoader]]:
    """Makes loaders with workers, and stops their workers in the end."""
    made: list[DataLoader] = []

    def make(*arguments: Any, num_workers: int = 2, **options: Any) -> DataLoader:
        made.append(loader(*arguments, num_workers=num_workers, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()
    assert_stopped()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let PyTorch look every tenth of a second, not every five seconds, whether a silent worker is alive."""
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.1,))


def items(batch: MicroBatch) -> list[int]:
    return [int(item) for item in batch.inputs["items"]]


def positions(batch: MicroBatch) -> list[int]:
    return [int(position) for position in batch.targets[0]]


def take(batches: Iterator[MicroBatch], count: int) -> list[list[int]]:
    return [items(batch) for batch in islice(batches, count)]


def expected(stretch: range, length: int = 50) -> list[int]:
    return items_of(EpochOrder(length, key=(SEED,)), stretch)


def test_a_micro_batch_holds_the_items_at_its_positions_and_all_of_them_count() -> None:
    first, second = (next(loader(rank=rank)) for rank in (0, 1))
    assert positions(first) == [0, 1, 2]
    assert positions(second) == [3, 4, 5]
    assert items(first) + items(second) == expected(range(6))
    assert first.targets[1].all()


def test_the_ranks_together_read_the_run_in_order_across_epochs() -> None:
    ranks = [loader(rank=rank) for rank in range(2)]
    read = [item for _ in range(20) for rank in ranks for item in items(next(rank))]
    assert read == expected(range(120))


def test_consumed_samples_counts_completed_steps() -> None:
    batches = loader(consumed_samples=24)
    counted = []
    for _ in range(5):
        next(batches)
        counted.append(batches.consumed_samples)
    assert counted == [24, 36, 36, 48, 48]


def test_seeking_continues_as_if_the_run_had_never_stopped() -> None:
    undisturbed = take(loader(), 10)
    batches = loader()
    take(batches, 3)
    batches.seek(24)
    assert batches.consumed_samples == 24
    assert take(batches, 6) == undisturbed[4:]
    assert take(loader(consumed_samples=24), 6) == undisturbed[4:]


def test_seeking_before_the_start_is_refused() -> None:
    with pytest.raises(DataError, match="consumed_samples is -1"):
        loader(consumed_samples=-1)


def test_unshuffled_data_comes_in_its_own_order() -> None:
    assert take(loader(geometry=(1, 4, 1), shuffle=False), 2) == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_reading_leaves_the_random_state_of_the_process_alone(worker_loader: Callable[..., DataLoader]) -> None:
    before = torch.get_rng_state()
    next(loader())
    next(worker_loader())
    assert torch.equal(torch.get_rng_state(), before)


def test_workers_read_the_same_in_other_processes(worker_loader: Callable[..., DataLoader]) -> None:
    batches = worker_loader(prefetch_factor=3)
    read = list(islice(batches, 9))
    assert [items(batch) for batch in read] == take(loader(), 9)
    processes = {int(batch.inputs["process"]) for batch in read}
    assert len(processes) == 2
    assert os.getpid() not in processes
    assert batches.consumed_samples == 4 * 12


def test_workers_drop_what_they_had_read_ahead_when_the_run_continues_elsewhere(
    worker_loader: Callable[..., DataLoader],
) -> None:
    undisturbed = take(loader(), 12)
    batches = worker_loader()
    first = next(batches)
    assert items(first) == undisturbed[0]
    for step in (4, 1, 5):
        batches.seek(12 * step)
        assert take(batches, 2) == undisturbed[2 * step : 2 * step + 2]
    workers = reading_processes()
    batches.close()
    assert_stopped()
    assert [worker.exitcode for worker in workers] == [0, 0], "PyTorch lost patience and killed a worker"
    assert take(batches, 1) == take(loader(consumed_samples=72), 1)


def test_workers_leave_ctrl_c_to_the_training_process(worker_loader: Callable[..., DataLoader]) -> None:
    batches = worker_loader(num_workers=1)
    process = int(next(batches).inputs["process"])
    for number in (signal.SIGINT, signal.SIGUSR1):
        os.kill(process, number)
    assert {int(batch.inputs["process"]) for batch in islice(batches, 5)} == {process}


@pytest.mark.usefixtures("impatient")
def test_a_worker_that_dies_is_replaced_and_nothing_is_lost(
    worker_loader: Callable[..., DataLoader], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    batches = worker_loader(Deadly(50, tmp_path / "memory"))
    with caplog.at_level(logging.WARNING):
        assert take(batches, 20) == take(loader(), 20)
    assert "a data worker died" in caplog.text


@pytest.mark.usefixtures("impatient")
def test_workers_that_keep_dying_are_an_error(worker_loader: Callable[..., DataLoader]) -> None:
    batches = worker_loader(Deadly(50), num_workers=1)
    with pytest.raises(ScalingError, match="die as soon as they start"):
        take(batches, 20)


def test_what_a_worker_cannot_send_is_an_error_and_not_awaited_for_ever(
    worker_loader: Callable[..., DataLoader],
) -> None:
    with pytest.raises(ScalingError, match="read a micro-batch that it cannot send"):
        next(worker_loader(Unsendable(50), num_workers=1))


ERRORS = [
    (KeyError("text"), DataError, r"KeyError: 'text' \(datasets\.py, line \d+\)"),
    (DataError("two images are missing"), DataError, "two images are missing"),
    (DataRefusedError("too many bad samples"), DataRefusedError, "too many bad samples"),
    (StorageError("gone"), StorageError, "gone"),
    (OSError(5, "Input/output error"), StorageError, "Input/output error"),
]


@pytest.mark.parametrize(("error", "category", "message"), ERRORS)
def test_an_error_names_the_sample(error: Exception, category: type[ScalingError], message: str) -> None:
    position = expected(range(50)).index(5)
    with pytest.raises(
        category, match=rf"sample 5 of the Broken \(position {position} of the run\).*{message}"
    ) as raised:
        take(loader(Broken(50, error), (1, 1, 1)), 50)
    assert raised.type is category


def test_an_error_in_a_worker_is_the_same_error(worker_loader: Callable[..., DataLoader]) -> None:
    for error, category, message in ERRORS[:1] + ERRORS[-1:]:
        batches = worker_loader(Broken(50, error), (1, 1, 1), num_workers=1)
        with pytest.raises(category, match=rf"sample 5 of the Broken .*{message}") as raised:
            take(batches, 50)
        assert "Traceback" not in str(raised.value)
        assert "datasets.py" in str(raised.value.__cause__)
        batches.close()


def test_an_error_in_a_blend_names_the_source() -> None:
    blend = BlendedDataset([Numbers(9), Broken(9, ValueError("bad"))], BlendedDatasetConfig(), names=["web", "code"])
    with pytest.raises(DataError, match="sample 5 of data set code"):
        take(loader(blend), 20)


def test_an_error_while_collating_names_the_positions() -> None:
    class Unequal(Labels):
        def collate(self, *_: object) -> MicroBatch:
            raise ValueError("sizes differ")

    with pytest.raises(DataError, match="samples at positions 0 to 2 of the run cannot be collated: ValueError: sizes"):
        next(loader(Unequal("a", 9)))


def test_a_data_set_that_cannot_be_sent_to_workers_is_refused(worker_loader: Callable[..., DataLoader]) -> None:
    class Local(Numbers):
        pass

    with pytest.raises(DataError, match=r"cannot be sent to worker processes.*set num_workers to 0"):
        next(worker_loader(Local(9)))


@pytest.mark.parametrize(("action", "category"), [("raise", DataError), ("eio", StorageError)])
def test_fetching_is_a_fault_point(action: str, category: type[ScalingError], monkeypatch: pytest.MonkeyPatch) -> None:
    faults.forget_passages()
    monkeypatch.setenv(faults.VARIABLE, f"data.fetch:2={action}")
    batches = loader()
    next(batches)
    with pytest.raises(category, match=r"micro-batch at positions 6 to 8 of the run cannot be read: .*data.fetch"):
        next(batches)


@pytest.mark.parametrize("geometry", [(1, 1, 1), (2, 3, 2), (3, 5, 1), (4, 1, 7)])
@pytest.mark.parametrize("length", [1, 12, 23])
def test_an_evaluation_counts_every_sample_once(geometry: tuple[int, int, int], length: int) -> None:
    size, micro_batch_size, accumulation = geometry
    counted: list[int] = []
    for rank in range(size):
        batches = list(evaluation(Numbers(length), geometry, rank=rank))
        assert len(batches) == evaluation_steps(length, BatchGeometry(*geometry)) * accumulation
        for batch in batches:
            assert len(items(batch)) == micro_batch_size
            counted += [item for item, valid in zip(items(batch), batch.targets[1], strict=True) if valid]
    assert sorted(counted) == list(range(length))


def test_an_evaluation_of_a_blend_sees_every_source_in_full() -> None:
    config = BlendedDatasetConfig(weight_by_num_documents=False, weights=[1, 9])
    (batch,) = evaluation(BlendedDataset([Labels("a", 5), Labels("b", 2)], config), (1, 7, 1))
    assert batch.inputs == ["a0", "a1", "a2", "a3", "a4", "b0", "b1"]


@pytest.mark.parametrize("geometry", [(1, 2, 2), (2, 2, 1), (4, 1, 1)])
def test_an_evaluation_of_some_steps_sees_a_part_of_every_source(geometry: tuple[int, int, int]) -> None:
    blend = BlendedDataset([Labels("a", 20), Labels("b", 12)], BlendedDatasetConfig())
    counted: list[str] = []
    for rank in range(geometry[0]):
        for batch in evaluation(blend, geometry, rank=rank, limit=2):
            counted += batch.inputs
    assert sorted(counted) == ["a0", "a12", "a16", "a4", "a8", "b0", "b4", "b8"]


def test_an_evaluation_may_use_workers_and_stops_them() -> None:
    assert take(evaluation(Numbers(7), (1, 2, 1), num_workers=1), 10) == [[0, 1], [2, 3], [4, 5], [6, 0]]
    batches = evaluation(Numbers(7), (1, 2, 1), num_workers=1, limit=3)
    next(batches)
    batches.close()
    assert_stopped()


def test_the_time_for_which_the_host_waits_for_micro_batches_is_counted_until_it_is_taken() -> None:
    subject = loader()
    now = itertools.count()  # a second passes wherever the clock is looked at
    with mock.patch.object(module, "time", SimpleNamespace(perf_counter=lambda: float(next(now)))):
        assert subject.take_waited() == 0.0
        for _ in range(3):
            next(subject)
        assert subject.take_waited() == 3.0
        assert subject.take_waited() == 0.0
        subject.wait()
        next(subject)  # is there already
        assert subject.take_waited() == 1.0
