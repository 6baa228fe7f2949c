"""The hosts themselves: what the other tests of this folder build on."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.cluster.docker import IMAGE, Docker
from tests.cluster.hosts import Hosts
from tests.cluster.slurm import Slurm
from tests.processes import wait_until

pytestmark = pytest.mark.slow


def test_this_machine_can_have_hosts(lacking: list[str]) -> None:
    if lacking:
        pytest.skip(f"runs over several hosts are not tested here; missing: {', '.join(lacking)}")


def test_hosts_have_names_of_their_own_and_reach_each_other(hosts: Hosts) -> None:
    for here, there in (("h1", "h2"), ("h2", "h1")):
        assert hosts.run(here, ["hostname"]).stdout == f"{here}\n"
        assert hosts.run(here, ["ssh", "-F", hosts.ssh_config, there, "hostname"]).stdout == f"{there}\n"
    both = {**os.environ, "PDSH_SSH_ARGS_APPEND": f"-F {hosts.ssh_config}"}
    answers = hosts.run("h1", ["pdsh", "-R", "ssh", "-S", "-w", "h1,h2", "hostname"], env=both).stdout
    assert sorted(answers.splitlines()) == ["h1: h1", "h2: h2"]


def test_what_runs_on_a_host_is_seen_and_ends_with_it(hosts: Hosts) -> None:
    remote = hosts.popen("h1", ["ssh", "-F", hosts.ssh_config, "h2", "exec sleep 1000"])
    wait_until(lambda: "sleep 1000" in hosts.everywhere().get("h2", []), "it did not start")
    hosts.kill("h2")
    assert remote.wait(10) == 255
    hosts.wait_until_idle(10)


def test_a_host_that_is_cut_off_is_not_reached(hosts: Hosts) -> None:
    reach = ["ssh", "-F", hosts.ssh_config, "-o", "ConnectTimeout=2", "h2", "true"]
    hosts.cut("h2")
    assert hosts.run("h1", reach, check=False).returncode == 255
    hosts.mend("h2")
    assert hosts.run("h1", reach, check=False).returncode == 0


def test_hosts_may_differ_in_files_and_variables(hosts: Hosts, tmp_path: Path) -> None:
    here, other = tmp_path / "here.txt", tmp_path / "other.txt"
    here.write_text("here")
    other.write_text("other")
    read = ["ssh", "-F", hosts.ssh_config, "h2", f"cat {here}; echo $PLANET"]
    with hosts.mounted("h2", other, here), hosts.more_variables({"PLANET": "Mars"}):
        assert hosts.run("h1", read).stdout == "otherMars\n"
        assert here.read_text() == "here"
    hosts.set_hosts_file("h1", "127.0.1.1 h1\n")
    assert hosts.run("h1", ["getent", "hosts", "h1"]).stdout.split() == ["127.0.1.1", "h1"]


def test_containers_run_on_their_host(hosts: Hosts, docker: Docker) -> None:
    mounts = " ".join(f"-v {here}:{there}" for here, there in docker.mounts())
    command = f"docker run --rm -i --network=host {mounts} {IMAGE} hostname"
    assert hosts.run("h1", ["ssh", "-F", hosts.ssh_config, "h2", command]).stdout == "h2\n"
    assert docker.containers() == {}
    hosts.wait_until_idle(10)


def test_nothing_is_left_of_hosts(tmp_path: Path) -> None:
    with Hosts(("h1",), folder=tmp_path) as one:
        sleeping = one.popen("h1", ["sleep", "1000"])
        assert sorted(Path("/run/netns").glob(f"{one.prefix}*"))
    assert sleeping.returncode == -signal.SIGKILL
    assert not [*Path("/run/netns").glob(f"{one.prefix}*"), *Path("/etc/netns").glob(f"{one.prefix}*")]


def test_jobs_run_on_all_hosts(hosts: Hosts, slurm: Slurm) -> None:
    job = ["srun", "-N2", "-n4", "--ntasks-per-node=2", "hostname"]
    done = hosts.run("h1", job, env={**os.environ, **slurm.environment})
    assert sorted(done.stdout.split()) == ["h1", "h1", "h2", "h2"]
    hosts.wait_until_idle(10)
