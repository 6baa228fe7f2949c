"""A training through the real runner and through torchrun: what a user's shell sees of signals, faults and failures."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from typer.testing import CliRunner

from scaling.cli.main import app
from scaling.core import ConfigError, ExitStatus, LaunchContext, Topology
from scaling.core.config.config_file import handed_on
from scaling.core.topology.launch import CONFIG_COPY_VARIABLE
from scaling.transformer import launch
from scaling.transformer import train as training
from scaling.transformer.config.root import TransformerConfig
from scaling.transformer.launch import host_needs, launch_training
from tests.distributed import free_port
from tests.processes import wait_until
from tests.transformer.small import (
    build_corpus,
    command_environment,
    layout,
    metrics,
    nested,
    run_module,
    settings_of,
    state,
    train_small,
    values,
    write_config,
)

FOREVER = {"trainer.train_iterations": 1_000_000, "trainer.save_interval": 1_000_000}
TWO = layout(2, 1, 1)

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_corpus(tmp_path_factory.mktemp("corpus") / "training")


@pytest.fixture
def start(data: Path, tmp_path: Path) -> Iterator[Start]:
    """Start `scaling train` in a process group of its own; nothing of it may be there when the test is over."""
    started: list[subprocess.Popen[str]] = []

    def start_it(*changes: dict[str, Any]) -> subprocess.Popen[str]:
        settings = settings_of(data, tmp_path, {"trainer.save_dir": str(tmp_path / "checkpoints")}, *changes)
        config = write_config(tmp_path / "config" / "run.yml", settings)
        started.append(
            subprocess.Popen(
                [sys.executable, "-m", "scaling.cli.main", "train", str(config)],
                env=command_environment(),
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        )
        return started[-1]

    yield start_it
    try:
        ended = all(process.poll() is not None for process in started)  # what they have killed may be about to end
        wait_until(lambda: not processes_of(tmp_path), "processes were left behind", seconds=60.0 if ended else 0.0)
    finally:
        for pid in processes_of(tmp_path):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in started:
            process.kill()
            process.communicate()


def processes_of(run: Path) -> list[int]:
    """Return the living processes that have the configuration of a run on their command line."""
    needle = str(run / "config" / "run.yml").encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if needle in (folder / "cmdline").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except OSError:
            continue  # it has just ended
    return found


def wait_for_steps(run: Path, count: int, process: subprocess.Popen[str]) -> None:
    def have_come() -> bool:
        assert process.poll() is None, process.communicate()[1]
        path = run / "metrics.jsonl"
        return path.exists() and len(path.read_text().splitlines()) >= count

    wait_until(have_come, "training did not begin", seconds=120)


def end_of(process: subprocess.Popen[str], seconds: float) -> tuple[int, str]:
    _, shown = process.communicate(timeout=seconds)
    return process.returncode, shown


def asked_to_leave(start: Start, run: Path, number: signal.Signals, *changes: dict[str, Any]) -> tuple[int, str]:
    process = start(FOREVER, *changes)
    wait_for_steps(run, 3, process)
    process.send_signal(number)
    return end_of(process, 120)


def assert_saved(run: Path, *reasons: str) -> int:
    found = state(run)
    assert (found["state"], found["exit_status"]) == ("pre-empted", 75)
    assert found["reason"] in [f"{reason}, saved" for reason in reasons]
    step = int(found["step"])
    assert (run / "checkpoints" / "latest").read_text() == f"global_step{step}"
    assert [line["step"] for line in metrics(run)] == list(range(1, step + 1))
    return step


def test_sigterm_saves_and_the_run_goes_on_from_there(start: Start, data: Path, tmp_path: Path) -> None:
    status, shown = asked_to_leave(start, tmp_path, signal.SIGTERM, TWO)
    assert status == 75, shown
    assert "Traceback" not in shown
    step = assert_saved(tmp_path, "SIGTERM")
    settings = {"trainer.save_dir": str(tmp_path / "checkpoints"), "trainer.train_iterations": step + 2}
    resumed = train_small(data, tmp_path, TWO, settings)
    assert [line["step"] for line in resumed] == list(range(1, step + 3))


@pytest.mark.slow
def test_all_processes_save_when_their_runner_is_killed(start: Start, tmp_path: Path) -> None:
    process = start(FOREVER, TWO)
    wait_for_steps(tmp_path, 3, process)
    process.kill()
    process.wait()
    wait_until(lambda: not processes_of(tmp_path), "processes were left behind", seconds=120)
    assert_saved(tmp_path, "SIGTERM", "a signal to another rank")  # whichever process notices first


@pytest.mark.slow
@pytest.mark.parametrize("changes", [TWO, layout(1, 1, 1)], ids=["two", "one"])
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGINT], ids=["usr1", "ctrl-c"])
def test_other_signals_save_too(start: Start, tmp_path: Path, number: signal.Signals, changes: dict[str, Any]) -> None:
    status, shown = asked_to_leave(start, tmp_path, number, changes)
    assert status == 75, shown
    assert "Traceback" not in shown
    assert_saved(tmp_path, "SIGUSR1" if number is signal.SIGUSR1 else "SIGTERM")


@pytest.mark.slow
def test_ctrl_c_at_a_terminal_reaches_every_process_and_is_one_request(start: Start, tmp_path: Path) -> None:
    process = start(FOREVER, TWO)
    wait_for_steps(tmp_path, 3, process)
    os.killpg(process.pid, signal.SIGINT)
    status, shown = end_of(process, 120)
    assert status == 75, shown
    assert "Traceback" not in shown
    assert state(tmp_path)["state"] == "pre-empted"


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.8, 2.5, 4.0])
@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 1, 1), (2, 2, 1)], ids=["one", "two", "four"])
def test_a_run_that_is_asked_to_leave_while_it_starts_is_soon_gone(
    start: Start, tmp_path: Path, sizes: tuple[int, int, int], seconds: float
) -> None:
    process = start(FOREVER, layout(*sizes))
    time.sleep(seconds)
    process.send_signal(signal.SIGTERM)
    asked = time.monotonic()
    status, shown = end_of(process, 60)
    wait_until(lambda: not processes_of(tmp_path), "processes were left behind", seconds=60)
    assert time.monotonic() - asked < 5
    assert status in (75, 128 + signal.SIGTERM, -signal.SIGTERM), shown
    assert "Traceback" not in shown


@pytest.mark.slow
def test_a_second_signal_leaves_at_once(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCALING_FAULT", "save.before_data@1=hang")
    process = start(FOREVER, TWO)
    wait_for_steps(tmp_path, 3, process)
    process.send_signal(signal.SIGTERM)
    assert process.stderr is not None
    while "a second one ends it at once" not in process.stderr.readline():
        assert process.poll() is None
    time.sleep(2)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    status, _ = end_of(process, 60)
    assert status == 128 + signal.SIGTERM
    assert not list((tmp_path / "checkpoints").glob("global_step*"))


@pytest.mark.slow
def test_a_killed_rank_ends_the_run_and_is_named(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCALING_FAULT", "step.after_backward@1:4=kill")
    status, shown = end_of(start(FOREVER, TWO), 120)
    assert status == 128 + signal.SIGKILL, shown
    assert f"rank 1 on {socket.gethostname()}: the process was ended by SIGKILL" in shown
    assert state(tmp_path)["state"] == "failed"


@pytest.mark.slow
def test_a_full_disk_ends_the_run_with_its_own_status(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCALING_FAULT", "save.before_data@0:2=enospc")
    status, shown = end_of(start({"trainer.train_iterations": 4, "trainer.save_interval": 2}), 120)
    assert status == 74, shown
    assert "error: step 4 was not saved: " in shown
    assert "No space left" in shown
    assert "Traceback" not in shown
    assert (tmp_path / "checkpoints" / "latest").read_text() == "global_step2"


@pytest.mark.slow
def test_torchrun_starts_the_training_from_a_shell(data: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "config.yml", settings_of(data, tmp_path / "cut", layout(1, 1, 1)))
    ended = run_module(
        "torch.distributed.run",
        "--nproc-per-node=4",
        f"--master-port={free_port()}",
        "-m",
        "scaling.transformer.train",
        config,
        "topology.data_parallel_size=2",
        "topology.model_parallel_size=2",
        OMP_NUM_THREADS="1",
    )
    assert ended.returncode == 0, ended.stderr
    alone = train_small(data, tmp_path / "alone")
    assert values(metrics(tmp_path / "cut")) == pytest.approx(values(alone), rel=1e-5)
    assert json.loads((tmp_path / "cut" / "run.json").read_text())["layout"]["model"] == 2


@pytest.mark.slow
def test_torchrun_with_the_wrong_number_of_processes_says_so_once(data: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "config.yml", settings_of(data, tmp_path / "run", layout(1, 1, 1)))
    ended = run_module(
        "torch.distributed.run",
        "--nproc-per-node=2",
        f"--master-port={free_port()}",
        "-m",
        "scaling.transformer.train",
        config,
    )
    assert ended.returncode != 0
    assert ended.stderr.count("error: rank") == 1  # and once more in the summary of torchrun itself
    assert "the launcher started 2 processes, but" in ended.stderr


def test_a_configuration_is_checked_before_the_corpus_is_built(tmp_path: Path) -> None:
    settings = {
        "data.corpus": "python_stdlib",
        "data.corpus_dir": str(tmp_path / "corpus"),
        "transformer_architecture.num_attention_heads": 3,
    }
    with pytest.raises(ConfigError, match="must be divisible by num_attention_heads"):
        launch_training(write_config(tmp_path / "config.yml", settings))
    assert not (tmp_path / "corpus").exists()


@pytest.mark.parametrize("rank", [0, 1])
def test_what_is_probably_not_meant_is_said_by_the_first_process(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rank: int
) -> None:
    monkeypatch.setattr(launch, "runner_main", lambda *arguments, **named: 0)
    launcher = {"WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in {"RANK": str(rank), **launcher}.items():
        monkeypatch.setenv(name, value)
    config = write_config(tmp_path / "config.yml", settings_of(data, tmp_path / "run"))
    monkeypatch.setattr(training, "train", lambda *_: ExitStatus.DONE)
    told = "note: trainer.save_dir: is not given: nothing is saved\n" if rank == 0 else ""
    assert launch_training(config)[1] == 0
    assert capsys.readouterr().err == told
    assert training.main([str(config)]) == 0
    assert capsys.readouterr().err == told
    with pytest.raises(ConfigError, match="names no data"):
        launch_training(config, ["data.data_prefixes=null"])
    assert capsys.readouterr().err == ""


def test_a_dry_run_builds_no_data_and_starts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", lambda *arguments, **named: pytest.fail("a process was started"))
    settings = {"data.corpus": "python_stdlib", "data.corpus_dir": str(tmp_path / "corpus"), **TWO}
    config = write_config(tmp_path / "config.yml", settings)
    ended = CliRunner().invoke(app, ["train", "--dry-run", str(config), "trainer.seed=2"])
    assert ended.exit_code == 0, ended.output
    assert "2 processes on this machine:\n" in ended.stdout
    assert f"-m scaling.transformer.train {config} trainer.seed=2\n" in ended.stdout
    assert not (tmp_path / "corpus").exists()


def test_for_kubernetes_files_of_this_machine_are_not_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"data.data_prefixes": ["/volume/tokens"], "transformer_architecture.vocab_size": 9}
    kubernetes = {"runner.runner_type": "kubernetes", "runner.kubernetes.image": "image"}
    monkeypatch.setattr(launch, "runner_main", lambda *arguments, **named: 0)
    config = write_config(tmp_path / "config.yml", {**settings, **kubernetes})
    assert launch_training(config)[1] == 0
    with pytest.raises(ConfigError, match=r"there is no \.bin and no \.idx file"):
        launch_training(write_config(tmp_path / "config.yml", settings))


def test_every_host_needs_tokenizer_data_and_the_folders_of_the_run(data: Path, tmp_path: Path) -> None:
    settings = settings_of(data, tmp_path, {"trainer.save_dir": str(tmp_path / "saved")})
    config = TransformerConfig.from_dict(nested(settings))
    needs = host_needs(config)
    prefix = config.data.data_prefixes[0] if config.data.data_prefixes else Path()
    assert set(needs.files) >= {f"{prefix}.bin", f"{prefix}.idx", f"{prefix}.meta.json"}
    assert all(Path(file).is_file() for file in needs.files)
    assert ("trainer.save_dir", str(tmp_path / "saved")) in needs.folders
    assert needs.device == config.topology.device.value


def test_the_kernels_are_told_at_the_start() -> None:
    settings = {"transformer_architecture.dropout_attention_probs": 0.1, "transformer_architecture.vocab_size": 9}
    learner = mock.Mock(topology=Topology.single())
    learner.module.parameters.return_value = []
    with mock.patch.object(training, "_log") as log, mock.patch.object(training, "told_data", return_value=[]):
        training._introduce(TransformerConfig.from_dict(nested(settings)), learner, mock.Mock())
    message, *arguments = log.info.call_args.args
    told = "spelled-out while probabilities are dropped, else scaled-dot-product (PyTorch)"
    assert message % tuple(arguments) == f"kernels: attention {told}; linear layers float32"


def test_a_process_keeps_to_its_numa_node_before_it_reads_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    bound = mock.Mock(side_effect=ConfigError("this machine has one NUMA node"))
    monkeypatch.setattr(training, "bind_to_numa_node", bound)
    config = TransformerConfig.from_dict({"runner": {"numa_binding": True}, "topology": {"device": "cpu"}})
    with pytest.raises(ConfigError, match="one NUMA node"):
        training.train(config, LaunchContext(local_rank=1))
    bound.assert_called_once_with(1, torch.device("cpu"))


def test_what_was_checked_is_trained_although_it_came_through_a_pipe(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = write_config(tmp_path / "config.yml", settings_of(data, tmp_path / "run", {"trainer.seed": 7})).read_bytes()
    theirs, ours = os.pipe()
    os.write(ours, text)
    os.close(ours)
    trained: list[TransformerConfig] = []

    def work(config: TransformerConfig, _: LaunchContext) -> ExitStatus:
        trained.append(config)
        return ExitStatus.DONE

    def start(*_: object, config_path: Path, config_text: str, overrides: list[str], **named: object) -> int:
        with handed_on(config_path, config_text) as copy:
            monkeypatch.setenv(CONFIG_COPY_VARIABLE, str(copy))
            return training.main([str(config_path), *overrides])

    monkeypatch.setattr(training, "train", work)
    monkeypatch.setattr(launch, "runner_main", start)
    try:
        assert launch_training(Path(f"/dev/fd/{theirs}"), ["topology.micro_batch_size=4"])[1] == 0
    finally:
        os.close(theirs)
    assert [(config.trainer.seed, config.topology.micro_batch_size) for config in trained] == [(7, 4)]


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_the_training_module_wants_a_configuration(arguments: list[str]) -> None:
    with pytest.raises(ConfigError, match="name a configuration"):
        training.main(arguments)
