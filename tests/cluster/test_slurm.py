"""A job of Slurm that is disturbed is queued again by itself, and ends as if nothing had happened."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.cluster.hosts import Hosts
from tests.cluster.runs import TWO, Cluster, Run, losses
from tests.cluster.slurm import Slurm

pytestmark = pytest.mark.slow

DISTURBED_AT = 12


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    return cluster.undisturbed(tmp_path_factory.mktemp("slurm"), TWO)


def submit(cluster: Cluster, slurm: Slurm, folder: Path) -> tuple[Run, str]:
    """Submit a training; return where it writes, and the job's number once it runs."""
    runner = cluster.runner("slurm", 2, hosts=None, default_gpu_count=1)
    run = cluster.train(folder, TWO, runner, variables=slurm.environment)
    assert run.wait(60) == 0, run.output
    job = slurm.only_job()
    slurm.wait_for_state(job, "RUNNING")
    return run, job


def assert_completed(
    cluster: Cluster, slurm: Slurm, run: Run, job: str, undisturbed: dict[int, float], *, restarts: Sequence[int] = (1,)
) -> None:
    over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
    state = slurm.wait_for_state(job, *over, seconds=150)
    assert state == "COMPLETED", slurm.said(run.folder)
    assert losses(run.lines()) == undisturbed
    assert run.state["state"] == "finished"
    described = slurm.run("scontrol", "--oneliner", "show", "job", job)
    found = re.search(r"\bRestarts=(\d+)", described)
    assert found is not None, described
    assert int(found[1]) in restarts
    cluster.hosts.wait_until_idle(10)


@pytest.mark.parametrize("command", [["scancel", "--signal=USR1"], ["scontrol", "requeue"]], ids=["usr1", "requeue"])
def test_a_job_that_is_asked_to_leave_goes_on_later(
    cluster: Cluster, slurm: Slurm, undisturbed: dict[int, float], tmp_path: Path, command: list[str]
) -> None:
    run, job = submit(cluster, slurm, tmp_path)
    run.wait_for_step(DISTURBED_AT, may_end=True)
    slurm.run(*command, job)
    assert_completed(cluster, slurm, run, job, undisturbed)


def test_a_signal_in_the_first_second_does_not_end_the_job(
    cluster: Cluster, slurm: Slurm, undisturbed: dict[int, float], tmp_path: Path
) -> None:
    run, job = submit(cluster, slurm, tmp_path)
    slurm.run("scancel", "--signal=USR1", job)
    assert_completed(cluster, slurm, run, job, undisturbed, restarts=(0, 1))  # before there are tasks it reaches nobody


def test_a_job_outlives_one_of_its_hosts(
    hosts: Hosts, cluster: Cluster, slurm: Slurm, undisturbed: dict[int, float], tmp_path: Path
) -> None:
    run, job = submit(cluster, slurm, tmp_path)
    run.wait_for_step(DISTURBED_AT, may_end=True)
    hosts.kill("h2", services=True)
    slurm.wait_for_state(job, "PENDING", seconds=60)
    slurm.start_host("h2")
    hosts.keep()
    assert_completed(cluster, slurm, run, job, undisturbed)


def test_what_slurm_says_about_a_refused_job_is_passed_on(cluster: Cluster, slurm: Slurm, tmp_path: Path) -> None:
    runner = cluster.runner("slurm", 2, hosts=None, default_gpu_count=1, slurm={"partition": "nowhere"})
    run = cluster.train(tmp_path, TWO, runner, variables=slurm.environment)
    assert run.wait(15) == 2, run.output
    assert "invalid partition specified: nowhere" in run.output
    assert slurm.run("squeue", "--noheader") == ""
