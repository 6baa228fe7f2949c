"""What would be started where, told without starting anything, and what is refused before that."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scaling.core.errors import ConfigError
from scaling.core.runner import main
from scaling.core.runner.config import RunnerConfig
from scaling.core.runner.main import runner_main
from scaling.core.runner.plan import HostNeeds
from tests.core.runner.test_fleet import Played


@pytest.fixture
def nothing_starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Played:
    """Make the start of any process an error; returns what stands for the way to other machines."""

    def refuse(*arguments: object, **named: object) -> None:
        raise AssertionError("a process was started")

    transport = Played(tmp_path, "done")
    monkeypatch.setattr(subprocess, "Popen", refuse)
    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(main, "transport_of", lambda config: transport)
    return transport


def dry_run(settings: dict[str, Any], tmp_path: Path, processes: int, **named: Any) -> int:
    return runner_main(
        RunnerConfig.from_dict(settings),
        module_or_script="my.training",
        config_path="my config.yml",
        overrides=["a=1"],
        processes=processes,
        log_dir=tmp_path / "log",
        dry_run=True,
        **named,
    )


def test_a_dry_run_prints_the_command_for_this_machine(
    nothing_starts: Played, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dry_run({"hosts": ["localhost slots=2,3"]}, tmp_path, 2) == 0
    assert capsys.readouterr().out == (
        f"2 processes on this machine:\n  {sys.executable} -u -m my.training 'my config.yml' a=1\n  GPUs 2, 3\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_prints_what_other_machines_would_do_without_secrets(
    nothing_starts: Played, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NCCL_DEBUG", "a b")
    monkeypatch.setenv("NCCL_API_KEY", "canary")
    nothing_starts.needs_file = True
    settings = {"runner_type": "pdsh", "hosts": ["h0 slots=2", "h1 slots=0,5"], "master_port": 4000}
    needs = HostNeeds(folders=(("logger.log_dir", str(tmp_path / "log")),))
    assert dry_run(settings, tmp_path, 4, needs=needs, config_text="") == 0
    shown = capsys.readouterr().out
    for line in (
        ": 4 processes on 2 hosts\n",
        "  meeting place: h0:4000\n",
        f"  program: {sys.executable} -u -m my.training 'my config.yml' a=1\n",
        "  NCCL_DEBUG='a b'\n",
        "  secrets, by name alone: NCCL_API_KEY\n",
        "host h0: ranks 0 to 1\n",
        "host h1: ranks 2 to 3, GPUs 0, 5\n",
        f"order file: {tmp_path / 'log' / '.scaling_order_'}",
        "clients:\n",
        "playing_node.py 1 ",
    ):
        assert line in shown
    assert "canary" not in shown
    assert list(tmp_path.iterdir()) == []


def test_one_machine_that_is_this_one_needs_no_transport(nothing_starts: Played, tmp_path: Path) -> None:
    for settings in ({"runner_type": "ssh"}, {"runner_type": "ssh", "hosts": ["localhost slots=2"]}):
        assert dry_run(settings, tmp_path, 2) == 0
    assert nothing_starts.asked == []
    docker = {"runner_type": "pdsh_docker", "docker_config": {"docker_container": "image"}}
    assert dry_run(docker, tmp_path, 2) == 0
    assert len(nothing_starts.asked) == 1


def test_every_attempt_needs_a_port(tmp_path: Path) -> None:
    settings = {"master_port": 65535, "max_restarts": 1}
    with pytest.raises(ConfigError, match="set it to at most 65534, or lower max_restarts"):
        dry_run(settings, tmp_path, 2)


def test_hosts_offer_as_many_processes_as_the_topology_has(nothing_starts: Played, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"offers 3 processes \(h0: 2, h1: 1\)"):
        dry_run({"runner_type": "ssh", "hosts": ["h0 slots=2", "h1 slots=1"]}, tmp_path, 4)
