"""A host that goes away: the run starts again where it may, and whoever reads the message learns which host it was."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tests.cluster.runs import FOREVER, FOUR, STEPS, TWO, Cluster, losses

pytestmark = pytest.mark.slow

KILLED_AT = 30
TIMEOUT = 10


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    return cluster.undisturbed(tmp_path_factory.mktemp("failures"), TWO)


@pytest.mark.parametrize("names", [("h1", "h2"), ("h2", "h1")], ids=["second", "first"])
def test_a_run_goes_on_after_one_of_its_hosts_was_killed(
    cluster: Cluster, undisturbed: dict[int, float], tmp_path: Path, names: tuple[str, str]
) -> None:
    """The runner is on h1, in both cases; rank 0 is on the first of `names`."""
    run = cluster.train(tmp_path, TWO, cluster.runner("ssh", 2, names=names, max_restarts=1))
    run.wait_for_step(KILLED_AT)
    cluster.hosts.kill("h2")
    lines = run.finish()
    assert len(lines) == STEPS
    assert losses(lines) == undisturbed
    said = first_cause(run.output)
    assert said.startswith("attempt 1 of 2 ended: host h2 "), run.output
    attempts = run.record["attempts"]
    assert len(attempts) == 2, attempts
    assert "h2" in json.dumps(attempts[0])
    cluster.hosts.wait_until_idle(10)


def test_without_restarts_it_ends_and_names_the_host(cluster: Cluster, tmp_path: Path) -> None:
    run = cluster.train(tmp_path, FOUR, FOREVER, cluster.runner("ssh", 4))
    run.wait_for_step(5)
    cluster.hosts.kill("h2")
    killed = time.monotonic()
    status = run.wait(60)
    assert time.monotonic() - killed < 15
    assert status not in (0, 2, 65, 75)
    assert "h2" in first_cause(run.output), run.output
    assert "Connection closed by peer" not in first_cause(run.output)
    assert run.state["state"] == "failed"
    assert "h2" in run.state["reason"]
    cluster.hosts.wait_until_idle(10)


def test_a_cut_link_ends_everything_on_both_sides(cluster: Cluster, tmp_path: Path) -> None:
    timeout = {"topology.process_group_timeout_seconds": TIMEOUT}
    run = cluster.train(tmp_path, TWO, FOREVER, timeout, cluster.runner("ssh", 2))
    run.wait_for_step(5)
    cluster.hosts.cut("h2")
    cut = time.monotonic()
    run.wait(TIMEOUT + 30)
    # The sshd of h2 cannot know that nobody is at the other end of its session.
    cluster.hosts.wait_until_idle(TIMEOUT + 30 - (time.monotonic() - cut), sessions=True)
    assert "h2" in first_cause(run.output), run.output
    assert "h2" in run.state["reason"]


def first_cause(output: str) -> str:
    """Return the first line by which the runner says what failed."""
    beginnings = ("error:", "attempt ")
    return next((line for line in output.splitlines() if line.startswith(beginnings)), "")
