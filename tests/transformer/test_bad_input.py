"""Every mistake of a user ends with a message and its status, on every rank alike: no traceback, no hang."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scaling.cli.main import main
from scaling.core import ConfigError, DataError, DataRefusedError, ExitStatus, ScalingError, StorageError
from scaling.transformer.data.tokenizer import train_tokenizer
from tests.distributed import run_world
from tests.transformer.small import (
    build_corpus,
    layout,
    nested,
    run_module,
    settings_of,
    state,
    statuses,
    train_as_rank,
    write_config,
)

ARCHITECTURE = "transformer_architecture"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_corpus(tmp_path_factory.mktemp("corpus") / "training")


@pytest.fixture
def config(data: Path, tmp_path: Path) -> Path:
    return write_config(tmp_path / "config.yml", settings_of(data, tmp_path / "run", layout(1, 1, 1)))


@pytest.fixture
def busy_port() -> Iterator[int]:
    with socket.socket() as holder:
        holder.bind(("0.0.0.0", 0))
        holder.listen(1)
        yield holder.getsockname()[1]


def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    """Run `scaling ARGUMENTS` in this process; return its status and what it wrote to stderr."""
    monkeypatch.setattr("sys.argv", ["scaling", *map(str, arguments)])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("RES_OPTIONS", "timeout:1 attempts:1")
    with pytest.raises(SystemExit) as leaving:
        main()
    code = leaving.value.code
    assert isinstance(code, int)
    return int(code), capfd.readouterr().err


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param(["trainer.train_iteration=5"], ["trainer.train_iteration", "train_iterations"], id="unknown-key"),
        pytest.param(["topologie.data_parallel_size=2"], ["topologie", "topology"], id="unknown-section"),
        pytest.param(["trainer.train_iterations=many"], ["trainer.train_iterations", "'many'"], id="wrong-type"),
        pytest.param(["trainer.seed=-1"], ["trainer.seed", "-1"], id="out-of-range"),
        pytest.param(["trainer.train_iterations"], ["trainer.train_iterations", "="], id="no-value"),
        pytest.param(
            ["topology.world_size=3", "topology.data_parallel_size=2"],
            ["topology.world_size: is 3, but model_parallel_size 1 * pipe_parallel_size 1 * data_parallel_size 2 = 2"],
            id="sizes-do-not-divide",
        ),
        pytest.param(
            ["topology.gradient_accumulation_steps=3"],
            ["topology.global_batch_size: is 8, but micro_batch_size 2 * gradient_accumulation_steps 3"],
            id="batch-numbers-do-not-multiply",
        ),
        pytest.param(
            ["topology.model_parallel_size=3"],
            [f"{ARCHITECTURE}.num_attention_heads: is 4, but must be divisible by topology.model_parallel_size (3)"],
            id="heads",
        ),
        pytest.param(
            [f"{ARCHITECTURE}.hidden_size=30"], [f"{ARCHITECTURE}.hidden_size: is 30, but must be"], id="width"
        ),
        pytest.param(["topology.pipe_parallel_size=7"], ["topology.pipe_parallel_size: is 7", "6 layers"], id="stages"),
        pytest.param(
            ["data.data_prefixes=[/no/such/data]"],
            ["data.data_prefixes.0: is '/no/such/data', but there is no .bin and no .idx file"],
            id="missing-data",
        ),
        pytest.param(["data.data_prefixes=null"], ["data.data_prefixes: names no data"], id="no-data"),
        pytest.param(
            [f"{ARCHITECTURE}.vocab_size=null"], [f"{ARCHITECTURE}.vocab_size: is not given"], id="no-vocabulary"
        ),
        pytest.param(["data.eod_token_id=67"], ["data.eod_token_id: is 67, outside the vocabulary"], id="end-token"),
        pytest.param(["topology.device=cuda"], ["topology.device: is cuda", "0 are visible here"], id="gpu"),
        pytest.param(["trainer.save_dir=pyproject.toml/x"], ["trainer.save_dir: is 'pyproject.toml/x'"], id="save-dir"),
        pytest.param(
            ["trainer.load_dir=/no/such"], ["trainer.load_dir: is '/no/such', but there is no"], id="load-dir"
        ),
        pytest.param(
            ["trainer.seed=x", "topology.device=tpu", "data.use_mmap=7"],
            ["3 problems", "trainer.seed", "topology.device", "data.use_mmap"],
            id="all-at-once",
        ),
    ],
)
def test_a_mistake_in_the_configuration_starts_nothing(
    config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    changes: list[str],
    expected: list[str],
) -> None:
    status, shown = command(monkeypatch, capfd, "train", config, *changes)
    assert status == ExitStatus.USER_INPUT
    assert shown.startswith("error: ")
    assert "Traceback" not in shown
    for part in expected:
        assert part in shown
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("topology: [unclosed", "config.yml"),
        ("- a\n- list\n", "config.yml"),
        (b"\xff\xfe\x00", "config.yml"),
        (None, "config.yml"),
    ],
    ids=["malformed", "no-mapping", "binary", "missing"],
)
def test_a_file_that_is_no_configuration_is_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    content: str | bytes | None,
    expected: str,
) -> None:
    path = tmp_path / "config.yml"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    status, shown = command(monkeypatch, capfd, "train", path)
    assert status == ExitStatus.USER_INPUT
    assert expected in shown
    assert "Traceback" not in shown


def test_a_port_in_use_is_named_before_anything_starts(
    config: Path, tmp_path: Path, busy_port: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    changes = [f"runner.master_port={busy_port}", "topology.data_parallel_size=2"]
    status, shown = command(monkeypatch, capfd, "train", config, *changes)
    assert status == ExitStatus.USER_INPUT
    assert f"port {busy_port}" in shown
    assert "runner.master_port" in shown
    assert not (tmp_path / "run").exists()


def write_foreign(prefix: Path) -> Path:
    """Write the two files of a token data set of somebody else's."""
    prefix.with_suffix(".bin").write_bytes(np.arange(100, dtype=np.uint16).tobytes())
    prefix.with_suffix(".idx").write_bytes(b"MMIDIDX\x00\x00" + bytes(64))
    return prefix


def write_truncated(prefix: Path) -> Path:
    build_corpus(prefix)
    with prefix.with_suffix(".bin").open("r+b") as file:
        file.truncate(64)
    return prefix


def write_with_high_tokens(prefix: Path) -> Path:
    return build_corpus(prefix, largest=90)


def write_too_short(prefix: Path) -> Path:
    return build_corpus(prefix, documents=1, seed=3)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (write_foreign, r"foreign\.meta\.json|foreign"),
        (write_truncated, r"\.bin is damaged or incomplete: it has 64 bytes"),
        (write_with_high_tokens, r"contains token 90, but the vocabulary is 0 to 66"),
        (write_too_short, r"1 document makes no sequence of 128 \+ 1 tokens"),
    ],
)
def test_unusable_data_are_refused_by_every_rank_alike(tmp_path: Path, write: Any, message: str) -> None:
    sections = nested(
        settings_of(
            write(tmp_path / "foreign"), tmp_path / "run", layout(2, 1, 1), {f"{ARCHITECTURE}.sequence_length": 128}
        )
    )
    ends = run_world(train_as_rank, 2, sections, grace=60)
    for end in ends:
        assert isinstance(end.error, DataError)
        assert end.error.exit_status == ExitStatus.USER_INPUT
        assert end.error.args == ends[0].error.args if ends[0].error else False
    with pytest.raises(DataError, match=message):
        raise ends[0].error or AssertionError


def test_a_launcher_of_another_size_is_refused_by_every_rank(data: Path, tmp_path: Path) -> None:
    sections = nested(settings_of(data, tmp_path / "run", layout(2, 2, 1)))
    ends = run_world(train_as_rank, 2, sections, grace=60)
    assert all(isinstance(end.error, ConfigError) for end in ends)
    assert "the launcher started 2 processes" in str(ends[0].error)


def test_ranks_with_different_settings_end_with_a_message(data: Path, tmp_path: Path) -> None:
    sections = nested(settings_of(data, tmp_path / "run", layout(2, 1, 1)))
    ends = run_world(train_with_own_seed, 2, sections, grace=60)
    assert all(isinstance(end.error, ScalingError) for end in ends)


def train_with_own_seed(rank: int, world_size: int, sections: dict[str, Any]) -> ExitStatus:
    return train_as_rank(rank, world_size, {**sections, "trainer": {**sections["trainer"], "seed": rank}})


def test_a_folder_for_checkpoints_that_cannot_be_written_is_noticed_before_training(data: Path, tmp_path: Path) -> None:
    """Not after the hours until the first save."""
    settings = {**layout(2, 1, 1), "trainer.save_dir": "/proc/no-such/checkpoints"}
    with pytest.raises(StorageError, match=r"/proc/no-such/checkpoints cannot be written .*trainer\.save_dir"):
        statuses(data, tmp_path, settings)
    assert not (tmp_path / "metrics.jsonl").exists()
    assert state(tmp_path)["exit_status"] == ExitStatus.STORAGE


def test_a_tokenizer_that_cannot_be_copied_is_no_crash(data: Path, tmp_path: Path) -> None:
    train_tokenizer(["text"], 257).save(tmp_path / "vocab.json")
    (tmp_path / "checkpoints" / "vocab.json").mkdir(parents=True)
    for save_dir, message in (
        (tmp_path / "checkpoints", f"leaving the tokenizer in trainer.save_dir ({tmp_path / 'checkpoints'}) failed"),
        (Path("/proc/no-such/checkpoints"), "/proc/no-such/checkpoints cannot be written"),
    ):
        settings = {
            "trainer.save_dir": str(save_dir),
            f"{ARCHITECTURE}.vocab_size": None,
            f"{ARCHITECTURE}.vocab_file": str(tmp_path / "vocab.json"),
        }
        ends = run_world(train_as_rank, 2, nested(settings_of(data, tmp_path, layout(2, 1, 1), settings)), grace=60)
        for end in ends:
            assert isinstance(end.error, StorageError)
            assert message in str(end.error)


def test_a_log_folder_that_cannot_be_written_ends_with_its_name(data: Path, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"/proc/no-such.*logger\.log_dir"):
        statuses(data, Path("/proc/no-such/run"), layout(2, 1, 1))


def test_numbers_that_stay_infinite_are_refused(data: Path, tmp_path: Path) -> None:
    settings = {"learning_rate_scheduler.learning_rate": 1e38, "learning_rate_scheduler.learning_rate_warmup_steps": 0}
    with pytest.raises(DataRefusedError, match=r"6 steps in a row, .*trainer\.max_consecutive_nonfinite_steps \(5\)"):
        statuses(data, tmp_path, settings, {"trainer.train_iterations": 20})
    assert state(tmp_path)["exit_status"] == ExitStatus.DATA_REFUSED


def test_foreign_data_are_named_before_a_process_is_started(tmp_path: Path) -> None:
    settings = settings_of(write_with_high_tokens(tmp_path / "data"), tmp_path / "run", layout(2, 1, 1))
    ended = run_module("scaling.cli.main", "train", write_config(tmp_path / "config.yml", settings))
    assert ended.returncode == ExitStatus.USER_INPUT
    assert ended.stderr.startswith("error: 1 problem in ")
    assert "data.data_prefixes.0: " in ended.stderr
    assert "contains token 90, but the vocabulary is 0 to 66" in ended.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_what_only_the_processes_notice_reaches_the_user_without_traceback(tmp_path: Path, ranks: int) -> None:
    changes = {f"{ARCHITECTURE}.sequence_length": 128, "trainer.save_dir": str(tmp_path / "checkpoints")}
    changes |= {"data.only_full_sequences": True}
    many = build_corpus(tmp_path / "data", documents=5000)  # more than are looked at before
    settings = settings_of(many, tmp_path / "run", layout(ranks, 1, 1), changes)
    ended = run_module("scaling.cli.main", "train", write_config(tmp_path / "config.yml", settings))
    assert ended.returncode == ExitStatus.USER_INPUT
    assert ended.stderr.startswith("error: ")
    assert ended.stderr.count("5000 documents make no sequence of 128 + 1 tokens") == 1
    assert "Traceback" not in ended.stderr
    assert state(tmp_path / "run")["exit_status"] == ExitStatus.USER_INPUT
