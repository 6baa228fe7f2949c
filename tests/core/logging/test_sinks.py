"""Where metrics go: files that resume, chosen ranks, and services that may be missing."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling.core.errors import ConfigError, StorageError
from scaling.core.logging.config import LoggerConfig
from scaling.core.logging.console import ConsoleSink
from scaling.core.logging.metrics_files import names_metrics
from scaling.core.logging.sinks import JsonLinesSink, TensorBoardSink, open_sinks

ORIGIN = {"pipe": 0, "data": 0, "model": 0}


def write(path: Path, steps: range, *, resumed_step: int) -> None:
    sink = JsonLinesSink(path, resumed_step=resumed_step)
    for step in steps:
        sink.write(step, {"training/loss": 1 / step})
    sink.close()


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_are_objects_in_full_precision(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    write(path, range(1, 4), resumed_step=0)
    assert read(path) == [{"step": step, "training/loss": 1 / step} for step in (1, 2, 3)]
    assert repr(1 / 3) in path.read_text()


@given(written=st.integers(0, 12), saved=st.integers(1, 12), torn=st.integers(0, 30))
def test_a_resumed_run_leaves_each_step_once_and_in_order(
    tmp_path_factory: pytest.TempPathFactory, written: int, saved: int, torn: int
) -> None:
    path = tmp_path_factory.mktemp("run") / "metrics.jsonl"
    saved = min(saved, max(written, 1))
    write(path, range(1, written + 1), resumed_step=0)
    os.truncate(path, max(0, path.stat().st_size - torn))  # as a power cut leaves it
    write(path, range(saved + 1, 16), resumed_step=saved)
    steps = [row["step"] for row in read(path)]
    assert steps == sorted(set(steps))
    assert steps[-(15 - saved) :] == list(range(saved + 1, 16))
    assert torn or steps == list(range(1, min(saved, written) + 1)) + list(range(saved + 1, 16))


def test_what_cannot_be_read_in_the_middle_is_not_lost_with_what_follows(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n\xff\xfe\n{"no step": 1}\n[]\n{"step": 2}\n{"step": "3"}\n{"step": 3')
    JsonLinesSink(path, resumed_step=2).close()
    assert path.read_bytes().endswith(b'{"step": 2}\n')


def test_a_new_run_keeps_the_file_of_the_old_one_beside_its_own(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, range(0), resumed_step=0)  # a start that logs nothing leaves nothing to keep
    write(path, range(1, 5), resumed_step=0)
    write(path, range(1, 3), resumed_step=0)
    assert [row["step"] for row in read(path)] == [1, 2]
    assert [row["step"] for row in read(tmp_path / "metrics.previous.jsonl")] == [1, 2, 3, 4]
    write(path, range(1, 6), resumed_step=0)
    write(path, range(1, 2), resumed_step=0)
    files = ["metrics.previous.jsonl", "metrics.previous.2.jsonl", "metrics.previous.3.jsonl", "metrics.jsonl"]
    assert [len(read(tmp_path / name)) for name in files] == [4, 2, 5, 1]
    assert len(list(tmp_path.iterdir())) == 4
    assert all(map(names_metrics, tmp_path.iterdir()))


def test_steps_that_come_again_are_kept_beside_the_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, range(1, 5), resumed_step=0)
    write(path, range(3, 6), resumed_step=2)
    write(path, range(5, 6), resumed_step=4)
    assert [row["step"] for row in read(path)] == [1, 2, 3, 4, 5]
    assert [row["step"] for row in read(tmp_path / "metrics.repeated.jsonl")] == [3, 4, 5]
    assert all(map(names_metrics, tmp_path.iterdir()))


def test_a_line_that_does_not_fit_on_the_disk_leaves_no_trace(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    sink = JsonLinesSink(path, resumed_step=0)
    sink.write(1, {"a": 1.0})

    class Short:
        """Takes half of what is written, as a disk that fills up does."""

        name = str(path)

        def __init__(self) -> None:
            self.file = path.open("ab", buffering=0)

        def write(self, data: bytes) -> int | None:
            return self.file.write(data[: len(data) // 2])

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    sink.close()
    sink._file = Short()  # type: ignore[assignment]  # a stand-in
    with pytest.raises(OSError, match="out of space"):
        sink.write(2, {"a": 1.0})
    sink.close()
    assert read(path) == [{"step": 1, "a": 1.0}]


def test_a_folder_that_cannot_be_written_is_a_named_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"logger\.log_dir"):
        JsonLinesSink(tmp_path / "file" / "metrics.jsonl", resumed_step=0)


def sinks_of(config: LoggerConfig, rank: int, positions: dict[str, int] | None = None) -> list[str]:
    sinks = open_sinks(config, rank=rank, positions=positions or ORIGIN, resumed_step=0, total_steps=10)
    for sink in sinks:
        sink.close()
    return [type(sink).__name__ for sink in sinks]


def test_by_default_rank_0_alone_writes(tmp_path: Path) -> None:
    config = LoggerConfig(log_dir=tmp_path)
    assert sinks_of(config, 0) == ["JsonLinesSink", "ConsoleSink"]
    assert sinks_of(config, 1) == []


def test_without_a_folder_nothing_is_written() -> None:
    assert sinks_of(LoggerConfig(), 0) == ["ConsoleSink"]


def test_ranks_are_chosen_by_list() -> None:
    config = LoggerConfig(metrics_ranks=[1, 3])
    assert [rank for rank in range(4) if sinks_of(config, rank)] == [1, 3]
    assert sinks_of(LoggerConfig(metrics_ranks=[]), 0) == []


def test_ranks_are_chosen_by_position(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writers: list[tuple[str, int | None]] = []

    class SummaryWriter:
        def __init__(self, folder: str, purge_step: int | None) -> None:
            writers.append((folder, purge_step))

        def close(self) -> None:
            pass

    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter  # type: ignore[attr-defined]  # a stand-in
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    config = LoggerConfig.from_dict(
        {
            "log_dir": str(tmp_path),
            "use_tensorboard": True,
            "tensorboard_ranks": {"data_parallel_rank": 0, "model_parallel_rank": 1},
            "metrics_ranks": [],
        }
    )
    assert sinks_of(config, 1, {"pipe": 1, "data": 0, "model": 1}) == ["TensorBoardSink"]
    assert sinks_of(config, 1, {"pipe": 1, "data": 1, "model": 1}) == []
    assert writers == [(str(tmp_path / "tensorboard" / "rank_1"), None)]
    TensorBoardSink(tmp_path, rank=0, resumed_step=5)
    assert writers[-1] == (str(tmp_path), 6)


@pytest.mark.parametrize(
    ("field", "module"),
    [("use_tensorboard", "torch.utils.tensorboard"), ("use_wandb", "wandb"), ("use_trackio", "trackio")],
)
def test_a_missing_package_is_named_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: str, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    config = LoggerConfig.from_dict({"log_dir": str(tmp_path), field: True})
    with pytest.raises(ConfigError, match=rf"logger\.{field}.*pip install"):
        sinks_of(config, 0)


def test_the_console_is_the_last_sink() -> None:
    sinks = open_sinks(LoggerConfig(), rank=0, positions=ORIGIN, resumed_step=0, total_steps=1)
    assert isinstance(sinks[-1], ConsoleSink)
