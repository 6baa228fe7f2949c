"""Machines of a run: how they are named, and what is said to start on each."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from scaling.core.errors import ConfigError, StorageError
from scaling.core.runner.cluster import Machine, machines, refuse_other_machines, torchrun_commands
from scaling.core.runner.config import RunnerConfig

TARGET = ["-m", "scaling.transformer.train", "my config.yml", "trainer.seed=1"]


def config(**values: Any) -> RunnerConfig:
    return RunnerConfig.from_dict(values)


def test_hosts_are_read_from_the_configuration_or_a_file(tmp_path: Path) -> None:
    expected = [Machine("a", 8), Machine("b", 4), Machine("c", 2, (0, 3)), Machine("d", 1, (0,))]
    lines = ["a", "b slots=4", "c slots=0,3", "d slots=0,"]
    assert machines(config(hosts=lines)) == expected
    path = tmp_path / "hosts"
    path.write_text("\n".join(["# machines", *lines, "", "  "]))
    assert machines(config(hostsfile=str(path))) == expected
    assert machines(config()) == []


@pytest.mark.parametrize("text", ["a slots=x", "a slots=1,x"])
def test_a_malformed_line_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "hosts"
    path.write_text(text)
    with pytest.raises(ConfigError, match=text):
        machines(config(hostsfile=str(path)))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"runner\.hostsfile"):
        machines(config(hostsfile=str(tmp_path / "none")))


def test_a_machine_is_named_once() -> None:
    with pytest.raises(ConfigError, match="names a more than once"):
        machines(config(hosts=["a", "b", "a slots=2"]))


def test_each_machine_has_its_command() -> None:
    runner = config(hosts=["a slots=2", "b slots=1,3"], master_port=1234)
    commands = torchrun_commands(machines(runner), runner, TARGET, processes=4)
    tail = "-m scaling.transformer.train 'my config.yml' trainer.seed=1"
    common = "--nproc-per-node=2 --master-addr=a --master-port=1234"
    assert commands == [
        f"torchrun --nnodes=2 --node-rank=0 {common} {tail}",
        f"CUDA_VISIBLE_DEVICES=1,3 torchrun --nnodes=2 --node-rank=1 {common} {tail}",
    ]


def test_the_number_of_processes_has_to_match() -> None:
    runner = config(runner_type="pdsh", hosts=["a slots=2", "b slots=2"])
    with pytest.raises(ConfigError, match=r"offers 4 processes \(a: 2, b: 2\), but topology\.world_size is 8"):
        refuse_other_machines(machines(runner), runner, TARGET, processes=8)


@pytest.mark.parametrize("hosts", [None, ["localhost"], ["localhost slots=1"], [socket.gethostname()]])
@pytest.mark.parametrize("runner_type", ["local", "pdsh"])
def test_this_machine_is_not_refused(hosts: list[str] | None, runner_type: str) -> None:
    runner = config(hosts=hosts, runner_type=runner_type)
    refuse_other_machines(machines(runner), runner, TARGET, processes=2)


def test_containers_are_refused_with_the_command_to_use_in_them() -> None:
    runner = config(runner_type="pdsh_docker", docker_config={"docker_container": "image"})
    with pytest.raises(ConfigError, match=r"not available yet[^$]*torchrun --nproc-per-node=2 -m scaling"):
        refuse_other_machines(machines(runner), runner, TARGET, processes=2)
