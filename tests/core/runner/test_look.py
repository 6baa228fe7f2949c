"""What a machine says about itself."""

from __future__ import annotations

import hashlib
import socket
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scaling.core.runner import look as look_module
from scaling.core.runner.look import (
    TOKEN_FILE,
    HostFacts,
    identity,
    interface_to,
    look,
    sampled_digest,
    source_digest,
    versions,
)
from scaling.core.runner.plan import HostNeeds, HostPlan, LaunchPlan


def planned(tmp_path: Path, port: int = 29500) -> LaunchPlan:
    return LaunchPlan(
        run_id="run-1",
        hosts=(
            HostPlan(name="localhost", index=0, first_rank=0, processes=1),
            HostPlan(name="me@localhost", index=1, first_rank=1, processes=1),
        ),
        master_addr="localhost",
        master_port=port,
        program=("-m", "train"),
        interpreter=sys.executable,
        directory=str(tmp_path),
        config_path="config.yml",
        needs=HostNeeds(
            files=(str(tmp_path / "there"), str(tmp_path / "not there")),
            folders=(("logger.log_dir", str(tmp_path)), ("trainer.save_dir", str(tmp_path / "none"))),
        ),
    )


def test_the_facts_of_this_machine(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("a: 1")
    (tmp_path / TOKEN_FILE.format(run_id="run-1")).write_text("token")
    found = look(planned(tmp_path), 1)
    assert found.hostname == socket.gethostname()
    assert found.versions == versions()
    assert found.versions["torch"] is not None
    assert found.files == {
        str(tmp_path / "there"): hashlib.sha256(b"4a: 1").hexdigest(),
        str(tmp_path / "not there"): None,
    }
    assert found.tokens == {str(tmp_path): "token", str(tmp_path / "none"): None}
    assert found.master_address in ("127.0.0.1", "::1")
    assert found.port_problem is None
    line = found.to_line("run-1")
    assert HostFacts.from_line(line, run_id="run-1") == found
    assert HostFacts.from_line(line, run_id="run-2") is None
    assert HostFacts.from_line("scaling_host_facts", run_id="run-1") is None
    assert look(planned(tmp_path), 0).identity == found.identity


def test_a_port_that_is_taken_is_seen_where_it_would_be_served(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        plan = planned(tmp_path, taken.getsockname()[1])
        assert look(plan, 0).port_problem == "Address already in use"
        assert look(plan, 1).port_problem is None
    assert look(plan, 0).port_problem is None


def test_large_files_are_known_by_samples(tmp_path: Path) -> None:
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # takes no room, and no time to be read in places
    first = sampled_digest(path)
    for place in (0, (1 << 40) - 1, (1 << 40) * 7 // 64):
        with path.open("r+b") as file:
            file.seek(place)
            file.write(b"x")
        changed = sampled_digest(path)
        assert changed != first
        first = changed
    with path.open("r+b") as file:
        file.truncate((1 << 40) - 4096)
    assert sampled_digest(path) != first
    assert sampled_digest(tmp_path) is None


def test_two_networks_of_one_machine_are_two_machines(tmp_path: Path) -> None:
    boot, network = tmp_path / "sys/kernel/random/boot_id", tmp_path / "self/ns/net"
    for path in (boot, network):
        path.parent.mkdir(parents=True)
    boot.write_text("boot\n")
    network.touch()
    first = identity(tmp_path)
    assert identity(tmp_path) == first
    network.rename(tmp_path / "former")
    network.touch()
    assert identity(tmp_path) != first
    boot.write_text("other boot\n")
    (tmp_path / "former").rename(network)
    assert identity(tmp_path) != first


def test_source_is_known_by_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("1")
    (tmp_path / "data").write_text("1")
    first = source_digest(tmp_path)
    (tmp_path / "data").write_text("2")
    assert source_digest(tmp_path) == first
    (tmp_path / "a.py").write_text("2")
    changed = source_digest(tmp_path)
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    assert len({first, changed, source_digest(tmp_path)}) == 3
    assert source_digest() == source_digest()


def test_the_interface_to_a_machine_is_named() -> None:
    assert interface_to("127.0.0.1") == "lo"
    assert interface_to("no.such.name.invalid") is None


def test_the_interface_to_an_address_of_the_sixth_version_is_by_the_kernels_table(tmp_path: Path) -> None:
    table = tmp_path / "if_inet6"
    table.write_text(
        "00000000000000000000000000000001 01 80 10 80       lo\nfd000000000000000000000000000002 02 40 00 80     eth0\n"
    )
    assert look_module._interface_with_v6("fd00::2", table) == "eth0"
    assert look_module._interface_with_v6("::1", table) == "lo"
    assert look_module._interface_with_v6("fd00::3", table) is None


def test_name_servers_that_do_not_answer_hold_up_no_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answered = threading.Event()

    def wait(*_: Any, **__: Any) -> Any:
        answered.wait(60)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(look_module, "_NAME_SECONDS", 0.2)
    monkeypatch.setattr(socket, "getaddrinfo", wait)
    begun = time.monotonic()
    found = look(planned(tmp_path), 1)
    answered.set()
    assert time.monotonic() - begun < 5.0
    assert (found.own_address, found.master_address, found.interface) == (None, None, None)


def test_a_name_that_leads_nowhere_is_none(tmp_path: Path) -> None:
    plan = replace(planned(tmp_path), master_addr="no.such.name.invalid")
    assert look(plan, 1).master_address is None
